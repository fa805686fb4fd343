"""Rollouts: sample n responses per prompt from the current policy, keep them, play them back.

engine          what every engine offers; requests, sampling settings, errors
requests        the requests of a call, n per prompt
seeds           one sampling seed per response, independent of the layout
engine_limits   what an engine can run, checked from config.json before any engine starts
vllm_process    the process settings vLLM needs and the process state it must not change
vllm_engine     a vLLM engine inside the training process
requests_in_flight  what an engine is working on
weight_update   weights are verified before and while they flow into an engine
agreement       an error on one rank becomes an error on all ranks
colocated       every rank (or tensor-parallel group of ranks) holds an engine; prompts are split over them
store, replay   rollouts of a step as parquet, and training on stored rollouts
"""
