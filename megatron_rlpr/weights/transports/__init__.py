"""Weights on their way from a rank of the trainer to engines in other processes.

    WeightExporter -> framing.StreamCutter -> buffers -> framing.StreamAssembler -> engine worker
                                                 |
                  shared_memory: slots that processes of one host map, whatever the device
                  collective:    broadcasts in a process_group of its own, gloo on CPU and NCCL on CUDA, on any nodes

interface       what both offer: a `WeightTransport` makes a sender, its `WeightSource` travels to the readers
choice          `weights.transport`: which of the two carries a hand-over
lane            one rank's way to the engines: a transport, with or without the next
delta           `weights.delta`: of the stream only what has changed since the last one, over either

A bucket (`weights.bucket_mb`) is a pair of buffers: while readers take one half the other is filled, so either side
holds one bucket beyond the export. A reader is one worker of an engine; it copies a tensor out before the buffer is
given back, since engines keep parts of q, k and v.

CUDA IPC is left out: Ray hides the trainer's devices from the engines' processes, without which an IPC handle cannot be
opened, and engines inside the training processes (`rollout.vllm.colocated`) read the live weights anyway.
"""
