"""The policy's model, a Megatron-Core GPTModel. In the order data flows:

tree_policy       a model's shape and the actor's configuration -> this rank's layers with tree attention
layer_kind        whose layers they are: Transformer Engine's where it is installed, else Megatron's own
norms             RMSNorm of Megatron's own layers; norms behind attention and feed-forward
gated_activation  silu(gate) * up on a CPU
selected_head     hidden states at selected rows -> log-probs and entropies, logits never stored
head_tiles        one tile of those logits, forward and backward
"""
