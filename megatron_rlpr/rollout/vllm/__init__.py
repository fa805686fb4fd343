"""vLLM engines.

limits              what an engine can run, checked from config.json before any engine starts
process             the process settings vLLM needs and the process state it must not change
engine              one engine, driven step by step
sleep               its memory between two phases
requests_in_flight  what it is working on
weight_update       new weights are verified before and while they flow into it
worker_load         what each of its workers does with them; slice_load: with slices that are its own already
colocated           every rank (or tensor-parallel group of ranks) holds an engine; prompts are split over them
dealing             which of them gets which prompt
"""
