"""Run by torchrun. What it does stands in a module of its own, because the graders' workers import this one."""

if __name__ == "__main__":
    import sys

    import differing_ranks

    differing_ranks.main(*sys.argv[1:])
