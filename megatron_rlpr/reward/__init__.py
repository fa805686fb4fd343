"""Responses -> rewards: splice the reference answer, aggregate its probability, combine with format, repetition and
grade."""
