"""Where a run's numbers go: console, metrics.jsonl, Weights & Biases, TensorBoard and summary.json.

`tracker.Tracker` is what the loop talks to; everything else is behind it. Names of metrics: `metric_names`.
"""
