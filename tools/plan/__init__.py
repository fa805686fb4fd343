"""Whether a run fits its GPUs, how long a step takes, which layout would be better: `python -m tools.plan --help`.

gpus        what a GPU of each kind does and holds, and how much of it was seen to be reached
job         a recipe on so many GPUs of a kind: the sizes that everything else is computed from
parameters  how many weights a rank of the actor and of an engine holds
handover    what a hand-over sends to a GPU
memory      bytes of every term in every phase, and the largest token budget that fits
times       floating-point operations, bytes moved, pipeline bubble and seconds of every phase
layouts     other layouts of the same job, the nearest and fastest first
table       a plan as text, and as a comment at the end of a recipe
build, built_stage   the dry run: the real model of a rank of every stage, without storage
"""
