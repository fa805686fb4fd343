"""Command lines over `megatron_rlpr.weights`: Hugging Face folder to Megatron checkpoint, back, and a check of both.

process, single_process  how a conversion starts: without GPUs, a world of one; its progress
source_files     what a conversion reads, and whether it is still the same when it ends
model_outline    a Megatron model without weights: its parameters, and where a checkpoint keeps them
hf_to_megatron   Hugging Face folder -> streamed_save -> checkpoint, read back by streamed_load
megatron_to_hf   checkpoint -> streamed_load -> Hugging Face folder
verify           checkpoint against Hugging Face folder: every tensor, and logits of the policy against transformers'
"""
