"""From a configuration to a run, in the order of its life.

build     every part of a run, one public builder each; with it
prompts     which prompts it works on, and for how many steps
engines     where its rollouts come from
parts     the plain record that the builders fill and the trainer reads
folder    what lies where in <runs_dir>/<name>, and who may write there
continuity    whether a start goes on with the run it finds: same content, same meaning
state     where a run goes on, what a checkpoint holds, when one is written
"""
