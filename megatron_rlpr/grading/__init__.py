"""Graders decide whether a response's final answer equals the reference answer, by rules: no model, and no text is ever
executed.

`dispatch` picks the grader of a data source; `pool` runs many under a time limit.
"""
