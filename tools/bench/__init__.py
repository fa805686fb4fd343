"""Measurements of scoring, training, the output head, packing and rewards: `python -m tools.bench --help`."""
