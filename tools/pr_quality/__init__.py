"""How well the probability of the reference answer tells right responses from wrong ones.

__main__  the command line
scoring   the policy's log-probs of the reference answers spliced into labelled responses, and the rules' grades
measures  what is made of these log-probs: the reward's probability and its rivals
area      the area under the ROC curve, of all pairs and of pairs within a question; resampling of whole questions
quality   areas, per category too, and paired differences, with their intervals
table     as Markdown; plot: as a picture
"""
