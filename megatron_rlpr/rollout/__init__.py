"""Rollouts: sample n responses per prompt from the current policy, keep them, play them back.

engine          what every engine offers; requests, sampling settings, errors
requests        the requests of a call, n per prompt
seeds           one sampling seed per response, independent of the layout
engine_limits   what an engine can run, checked from config.json before any engine starts
vllm_process    the process settings vLLM needs and the process state it must not change
vllm_engine     a vLLM engine inside the training process
requests_in_flight  what an engine is working on
weight_update   weights are verified before and while they flow into an engine; worker_load: in each of its workers
agreement       an error on one rank becomes an error on all ranks
colocated       every rank (or tensor-parallel group of ranks) holds an engine; prompts are split over them
ray_cluster     an existing Ray cluster, or one of this machine that ends with the run
ray_guard       ends what Ray would leave behind for a minute when the trainer is killed
ray_actor       one engine in a process of Ray; ray_engine: how the trainer sees it
ray_pool        shares requests out (balancing), replaces engines, streams weights to them (weights.transports)
ray_rollouts    the first rank talks to the pool, all ranks get the groups and export weights when the pool lacks them
store, replay   rollouts of a step as parquet, and training on stored rollouts
"""
