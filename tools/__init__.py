"""Command lines around a run: fetch a model, prepare data, plan, check, report."""
