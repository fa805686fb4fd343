"""Command lines over `megatron_rlpr.weights`: Hugging Face folder to Megatron checkpoint, back, and a check of both."""
