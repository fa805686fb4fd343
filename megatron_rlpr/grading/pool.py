"""Grade many responses under a time limit each, in worker processes that can be killed.

An answer such as 9**9**9**9 can keep a mathematics library busy for ever inside one C call, which no exception
interrupts: only ending the process does. Pebble owns the processes: it kills a worker that is past the limit and starts
another. A policy that has gone astray may write many such answers at once, so every answer first has a short limit;
those that need longer are asked again, behind all others, and a whole batch has a limit of its own.

Workers come from a fork server that has imported the graders once, so that neither the threads nor the memory of the
training process are copied, and a replaced worker starts in milliseconds. Python imports the main module of the program
into every worker; keep heavy imports of an entry point inside its `main()`.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections import Counter
from collections.abc import Sequence

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from megatron_rlpr.data.sources import grader_of
from megatron_rlpr.grading.dispatch import QUICK, grade, without_verdict
from megatron_rlpr.grading.result import GradeResult, GradeTask

_MEMORY_LIMIT_BYTES = 4 * 1024**3
_STOP_SECONDS = 5.0
_SHORT_LIMIT_S = 1.0
_BATCH_LIMIT_S, _BATCH_LIMIT_PER_ANSWER_S = 60.0, 0.1
_TIME_LIMIT = "time limit"
MOST_WORKERS = 8


class GraderPool:
    """Worker processes that grade, started at the first answer that needs one: who never grades pays nothing.

    failures counts the reasons for which answers got no verdict since the pool was made; such an answer is wrong.
    """

    def __init__(self, workers: int | None = None, timeout_s: float = 10.0) -> None:
        """At most `workers` processes; an answer that takes longer than `timeout_s` seconds is wrong.

        workers: one a processor core of this process, up to 8, where nothing is given.
        """
        if workers is None:
            workers = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
        if workers < 1 or timeout_s <= 0:
            given = f"{workers} workers and {timeout_s} s"
            raise ValueError(f"a grader pool needs at least one worker and a positive limit, not {given}")
        self.workers = workers
        self.timeout_s = timeout_s
        self.failures: Counter[str] = Counter()
        self._pool: ProcessPool | None = None

    def grade_many(self, tasks: Sequence[GradeTask]) -> list[GradeResult]:
        """Grade the tasks, in order. Raises UserError for an unknown data source before anything is graded.

        Takes at most 60 s, and 0.1 s more a task: what has no verdict by then is wrong.
        """
        graders = {task.data_source: grader_of(task.data_source) for task in tasks}
        bounded = [index for index, task in enumerate(tasks) if graders[task.data_source] not in QUICK]
        deadline = time.monotonic() + _BATCH_LIMIT_S + _BATCH_LIMIT_PER_ANSWER_S * len(bounded)
        results = {i: _grade_safely(task) for i, task in enumerate(tasks) if graders[task.data_source] in QUICK}
        for limit_s in sorted({min(_SHORT_LIMIT_S, self.timeout_s), self.timeout_s}):
            waiting = {i: self._started().schedule(_grade_safely, args=[tasks[i]], timeout=limit_s) for i in bounded}
            results |= {i: self._outcome(future, tasks[i], deadline) for i, future in waiting.items()}
            bounded = [i for i in bounded if results[i].reason.startswith(_TIME_LIMIT)]
        self.failures.update(r.reason.split(":", 1)[0] for r in results.values() if r.reason)
        return [results[i] for i in range(len(tasks))]

    @property
    def started(self) -> bool:
        """True while worker processes exist."""
        return self._pool is not None

    def close(self) -> None:
        """Stop the workers; the pool starts new ones when it is used again."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join(timeout=_STOP_SECONDS)
            self._pool = None

    def _started(self) -> ProcessPool:
        if self._pool is None or not self._pool.active:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            self._pool = ProcessPool(max_workers=self.workers, initializer=_limit_memory, context=context)
        return self._pool

    def _outcome(self, future: ProcessFuture, task: GradeTask, deadline: float) -> GradeResult:
        try:
            return future.result(max(deadline - time.monotonic(), 0.0))
        except TimeoutError:
            future.cancel()  # ends the worker if it has begun
            return without_verdict(task, f"{_TIME_LIMIT}: no verdict in {self.timeout_s:g} s")
        except ProcessExpired as error:
            return without_verdict(task, f"worker ended: exit code {error.exitcode}")


def _limit_memory() -> None:
    """Bound the worker's address space: a huge number then fails to be made, instead of taking the machine's memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(_MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _grade_safely(task: GradeTask) -> GradeResult:
    """Grade; what no grader foresaw in a response makes that answer wrong, with the error as reason, not the run."""
    try:
        return grade(task)
    except Exception as error:
        return without_verdict(task, f"{type(error).__name__}: {error}")
