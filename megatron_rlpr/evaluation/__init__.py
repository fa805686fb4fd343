"""Held-out prompts: graders, LLM judge, and means with confidence intervals."""
