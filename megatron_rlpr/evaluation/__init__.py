"""Held-out prompts: what a validation measures, and what training changed.

held_out            answers, scores and grades every validation set
answers             every answer on disk: what a killed validation goes on from
judge               a language model's second opinion; judge_settings: which one, how patiently; judge_prompts: what it
                    is asked and how its reply is read; judge_connection: asking it, with limits; judge_answers: on disk
validation_metrics  all metrics of a validation, the reference's names of accuracies and its means among them
intervals           95% confidence intervals of means and paired differences
pass_at_k          the unbiased estimate of pass@k
accuracy_table     accuracies with intervals, of every set and of the means over groups of sets
comparison          summary.json: the first and the last validation side by side
schedule            when the run validates
"""
