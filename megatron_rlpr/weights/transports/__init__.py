"""Weights on their way from the trainer's first rank to engines in other processes.

    WeightExporter -> framing.StreamCutter -> buckets -> framing.StreamAssembler -> engine worker
                                                 |
                  shared_memory: two slots that processes of one host map, on any device
                  collective:    broadcasts of a group of its own, gloo on CPU and NCCL on CUDA, on any nodes

interface       what both offer: a `WeightTransport` makes a sender, its `WeightSource` travels to the readers
choice          `weights.transport`: which of the two carries a hand-over
host            whether two processes can share memory

Both are double-buffered: while readers take one bucket the next one is filled, and no third exists. A reader is one worker of
an engine; it copies a tensor out of its bucket before the bucket is given back, since engines keep parts of q, k and v.

CUDA IPC is left out: Ray hides the trainer's devices from the engines' processes, without which an IPC handle cannot be
opened, and engines inside the training processes (`rollout.colocated`) read the live weights anyway.
"""
