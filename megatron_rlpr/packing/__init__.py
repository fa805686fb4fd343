"""Sequences with wanted rows -> prefix trees -> micro-batches under a token budget, balanced over data-parallel ranks.

plan        the way through the others: from requests to every rank's micro-batches
sequences   sorted, so that what shares a prefix is neighbours
cost        what sequences cost, in floating-point operations
distribute  a near-equal share for every rank
cuts        a share cut into runs that fit the token budget
tree        a run laid out as a forest, and the rows wanted from it
context     the tokens of a forest shared among context-parallel ranks
"""

from megatron_rlpr.packing.context import share_of
from megatron_rlpr.packing.cost import CostModel
from megatron_rlpr.packing.plan import Plan, plan
from megatron_rlpr.packing.tree import ContextShare, Nodes, TreeMicroBatch

__all__ = ["ContextShare", "CostModel", "Nodes", "Plan", "TreeMicroBatch", "plan", "share_of"]
