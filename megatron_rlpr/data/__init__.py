"""Parquet files -> prompts: schema checks, chat template, prompt rewrite, resumable sampler."""
