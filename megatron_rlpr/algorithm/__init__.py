"""Rewards to loss: pure functions over plain arrays and three small state classes.

Group statistics are numpy float64; whatever is differentiated is torch. In the order of a step:

batch_fill        groups of the step's rounds until there are enough; accounts for every group
std_filter        leaves out groups whose rewards barely differ, by a moving average of their std
group_statistics  mean and std of one group's rewards, as filter and estimators measure them
kl                KL to the reference policy: per token, inside the reward, and its coefficient
advantage         the estimators: groups of rewards -> an advantage per token
training_batch    scored groups -> the sequences the policy trains on, with advantages and weights
aggregation       how token losses become one number
policy_loss       the clipped loss of single tokens
learning_rate     a function of the step alone
"""
