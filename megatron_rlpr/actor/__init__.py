"""The Megatron-Core policy: scores token sequences and trains on them, in any parallel layout. In the order data flows:

parallel          torch.distributed and Megatron's process groups -> where this rank stands
group_sizes       how many ranks those groups have, before there are any
costs             what a model's sequences cost, for packing
policy            score() and update(): sequences -> packed micro-batches -> results on every rank
schedule          micro-batches -> Megatron's pipeline schedule, forward only or with backward
  model/          the policy as a GPTModel whose head computes selected rows only
  attention/      every token attends to its ancestors: one protocol, several backends
  cpu/            Megatron-Core without CUDA, and compiled loops for what is no matrix product
to_device         numbers planned on the host, on their way to the device
interleaving      how many micro-batches in a row pass one of a rank's chunks
policy_gradient   rows of log-probs and entropies -> loss and statistics
fp8               which key goes to which of Megatron's configurations, and what each recipe asks for
delayed_scaling   the scales of FP8 that are made from earlier steps
optimizer*        gradient buffers, AdamW, clipping; its state, whatever the layout; its shards as boxes of parameters
memory            what of it is on the device while engines generate (actor.offload)
host_copies       memory that moves to the host and back
checkpoint*       policy and optimizer <-> sharded files; the share of one rank, written now or by a thread
"""
