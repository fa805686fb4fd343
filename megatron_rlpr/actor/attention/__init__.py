"""Tree attention: every token of a forest attends to its ancestors and to itself. In the order data flows:

rotary           a token's depth in its tree -> the angles that its queries and keys are rotated by
context          context parallelism: keys and values of all ranks for each rank's queries
backend          the protocol of those who compute it (applies, lay_out, attend), and the choice of one
core             Megatron's core attention, which hands a layer's queries, keys and values to the backend
query_rows       the tokens that ask, where not all do, as ranges

cascade_*        backend on CUDA in half precision: PyTorch's flash attention; layout: a varlen call a level of the tree
flex_attention   backend on CUDA for the rest (fp32, soft-capping, sliding windows): PyTorch's FlexAttention
paged_*          backend on a CPU: vLLM's kernel; layout: paths as lists of shared pages
block_*          backend everywhere, and the backward of paged: plain tensor operations; layout: blocks of rows
"""
