"""Held-out prompts: what a validation measures, and what training changed.

held_out            answers, scores and grades every validation set
judge               a language model's second opinion; judge_prompts: what it is asked and how its reply is read
validation_metrics  the reference's names of accuracies, and its means over the general benchmarks
intervals           95% confidence intervals of means and paired differences
comparison          summary.json: the first and the last validation side by side
schedule            when the run validates
"""
