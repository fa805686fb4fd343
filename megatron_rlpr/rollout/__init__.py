"""Rollouts: sample n responses per prompt from the current policy, keep them, play them back.

requests        what a call asks for: prompts, n, how to sample; one request, with a seed of its own, per response
engine          how an engine is made, and what every source of rollouts offers
owned           texts with one rank, numbers with all
balancing       which engine has the least to do, and so gets the next prompt
vllm/           vLLM engines, and rollouts from those inside the training processes
ray/            rollouts from a pool of such engines in Ray, which replaces those that die or hang
store           rollouts of a step as parquet
writing         the same beside the training, a file a node
replay          training on stored rollouts
"""
