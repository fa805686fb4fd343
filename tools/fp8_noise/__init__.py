"""How much FP8 disturbs the reward.

__main__   the command line
precisions the policy in every precision: reference probabilities, and the gradient of an update
noise      what differs between two precisions, in numbers
plot       the same as a picture
"""
