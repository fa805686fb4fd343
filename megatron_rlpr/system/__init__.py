"""What every room stands on, and what knows no room.

process_environment   what must be set before torch loads, and how a process ends
stop_signals          SIGTERM and Ctrl-C: where a run may stop, and what it says then
decisions             what ranks decide together: the first one for all, or all or none
descriptors           how many files and sockets a process may open, and what groups of ranks take
shares                what every rank makes for its share, on all ranks, as arrays
disk                  what a file system refuses, in one line; room before it is needed
atomic_file           a file that is old or new, never between
step_folders          what is kept per step: complete or absent, the last few
sealed_folder         a tool's output that carries its own checksums
command_line          how every tool ends
clock                 seconds per phase
quoting               foreign text in messages, in moderation
dtypes                "float32" and "bfloat16" as torch knows them
"""
