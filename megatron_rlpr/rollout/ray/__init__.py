"""Engines in actors of a Ray cluster.

cluster         an existing Ray cluster, or one of this machine that ends with the run
guard           ends what Ray would leave behind for a minute when the trainer is killed
rollouts        the first rank talks to the pool, all ranks get the groups and export weights when the pool lacks them
pipeline        the next step's first round, while the policy trains
pool            answers requests and says which engines need weights
lanes           how these go there: whole tensors from the first rank, or slices from one rank for each of an engine's
request_queue   requests that wait, and tickets that collect the answers
scheduler       keeps the engines at work and replaces those that die or hang
engine          one engine as the trainer sees it
heartbeat       whether one that has not answered yet is slow or hangs
actor           the same engine in its own process
"""
