"""Parquet files -> prompts, in the order they pass.

parquet         reads a file and checks every row
sources         the one table of data sources: who grades them, and what else depends on their names
prompt_templates  other ways to ask than the file's: R1, R1 without think tags, plain, as for Llama and Gemma
dataset         prompts of templated rows that fit
chat_template   renders the model's template within limits; template_probe: tries it in a process that may be killed
tokenizer       loads the model's; encodes texts, finds tokens by characters, knows the special ones
sampler         which prompts a step works on; resumable
prompt_source   the training prompts: the sampler and what a step had too much of; carried_groups: as plain JSON
"""
