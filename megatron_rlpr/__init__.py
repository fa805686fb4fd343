"""RLPR (Reinforcement Learning with Reference Probability Reward) on Megatron-Core."""

__version__ = "0.1.0"
