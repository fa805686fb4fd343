"""What the policy needs on a machine without CUDA. Nothing here changes anything where there is one.

megatron     Megatron-Core's calls of CUDA, answered by the CPU
experts      the same for mixtures of experts
kernels      vLLM's compiled CPU kernels: attention over paged keys, RMSNorm
openmp_loop  loops over rows compiled by numba, on PyTorch's threads
loops        the policy's loops: gate, norm, attention's softmax, output head, rotation
"""
