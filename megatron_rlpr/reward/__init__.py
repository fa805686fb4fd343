"""Responses -> rewards, in the order of a round.

answer_tags       where the answer sits in a response's text
prompt_heads      the part of a prompt whose tokens do not depend on what follows
splice            the reference answer in place of the generated one, as text; splice_tokens: keeping sampled tokens
base_probability  the reference answer with no reasoning: what to score
base_table        the probabilities of it: in memory, with the run, and where other runs find them
base_pass         the pass that makes what a table lacks, shared by all ranks
of_owners         what owners make of texts, on all ranks
scoring           one call of the policy for all that a batch of groups needs
probability       token log-probs -> one number; shaping: functions of the difference to the base
repetition        the penalty for responses that repeat themselves
manager           scores, tags and grades -> the reward
reasoning         how long reasoning is, and what it adds to the reference probability
metrics           how rewards are spread, and how long reasoning and answers are
"""
