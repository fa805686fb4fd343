"""Data sets in the reference's schema, for training and for validation.

__main__      the command line
quickstart    the questions that the quickstart makes up
benchmarks    what a record of each public data set says: its question, its answer, its subject
foreign_rows  JSON Lines and parquet files of others, row by row, each with its place
conversion    rows -> one parquet file: every row is read and graded as a run would, and bad ones are listed
"""
