"""Rewards to loss: advantages, the clipped policy loss, KL terms, learning rate and the std filter.

Pure functions over plain arrays, and three small state classes (StdFilter, BatchFill, the KL controllers). Group
statistics are numpy float64; whatever is differentiated is torch.
"""
