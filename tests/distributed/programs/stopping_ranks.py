"""Two ranks take steps until one of them is asked to stop, by the other. Run by torchrun.

"asked": both stop at the same step. "failed": the first one fails, and the second one waits for it, where only the
launcher's signal reaches it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from megatron_rlpr.system import process_environment, stop_signals


def main(fault: str) -> None:
    dist.init_process_group("gloo")
    rank, others = dist.get_rank(), [torch.zeros(1, dtype=torch.long) for _ in range(2)]
    dist.all_gather(others, torch.tensor([os.getpid()]))
    try:
        with stop_signals.held():
            dist.barrier()
            for step in range(10_000):
                if rank == 0 and step == 20:
                    if fault == "failed":
                        process_environment.leave(7)
                    os.kill(int(others[1]), signal.SIGTERM)
                if fault == "failed" and step == 20:
                    ctypes.CDLL(None).sleep(600)
                    time.sleep(600)
                time.sleep(0.01)
                stop_signals.agree()
    except stop_signals.Stopped as stopped:
        print(f"rank {rank} stopped at step {step} of {stopped.args[0]}", flush=True)
        process_environment.leave(stopped.exit_status)


if __name__ == "__main__":
    stop_signals.listen()
    main(sys.argv[1])
