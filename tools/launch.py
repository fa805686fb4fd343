"""torchrun, with its arguments, but without tracebacks of its own under what the ranks have said.

    python -m tools.launch --nproc-per-node 2 pretrain_rlpr.py --config RECIPE.yaml [key=value ...]

Its exit status is that of the first rank that failed, or 128 + N after signal N. A run that is asked to stop has 600 s
for it (TORCH_ELASTIC_SHUTDOWN_TIMEOUT; torchrun gives 30).
"""

from __future__ import annotations

import os
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

SHUTDOWN_TIMEOUT_S = 600


def main(arguments: list[str] | None = None) -> int:
    """Run until all ranks have ended; returns the exit status."""
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_TIMEOUT_S))
    try:
        run.main(arguments)
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as failed:
        status = failed.get_first_failure()[1].exitcode
        return status if status > 0 else 128 - status  # a negative one is the signal that ended the rank
    return 0


if __name__ == "__main__":
    sys.exit(main())
