"""Sequences with wanted rows -> prefix trees -> micro-batches under a token budget, balanced over data-parallel
ranks."""

from megatron_rlpr.packing.cost import CostModel
from megatron_rlpr.packing.plan import Plan, plan
from megatron_rlpr.packing.tree import TreeMicroBatch

__all__ = ["CostModel", "Plan", "TreeMicroBatch", "plan"]
