"""Every parameter's two names, and the ways between them: load, export, hand over.

hf_folder        a Hugging Face folder: config.json, tokenizer, safetensors by pieces, the files beside them
shape            what a Megatron model is built from; architectures/ reads it from config.json, one file a family
mapping          how one Megatron parameter is made of Hugging Face tensors, and how tensor parallelism cuts it
architectures/   the table of all parameters of a model in both worlds
local_parameters which of them this rank's model chunks hold
load_hf          Hugging Face folder -> chunks
load_megatron    Megatron checkpoint -> chunks, whatever layout wrote it
stored_boxes     how layers and experts lie in one; plan_check: whether all pieces fill one
parallel_load    every data-parallel rank reads a part and sends it on; damage: what goes wrong there, in one line
engine_slices    which part of each a rank of a tensor-parallel engine holds
export           chunks -> stream of full Hugging Face tensors, or of those slices, on every rank
export_plan      what moves between ranks for it
buckets          the stream in pieces of bounded size, gathered one ahead
checksum         of the tensors in a stream, in any order
save_hf          stream -> safetensors; hf_export: the folders of a run, one beside each checkpoint
handover         stream -> engines, announced, confirmed, repeated; receiver: what it asks of them
delta_code       what separates two versions of a tensor, as bytes
transports/      the stream's way into other processes
"""
