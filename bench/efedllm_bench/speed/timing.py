"""Processor time of calls on a machine that has other work too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def timed(call: Callable[[], object]) -> float:
    """Seconds of this thread's processor time."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def tenth(times: list[float]) -> float:
    """The 10th percentile: other work only ever adds to a time."""
    return statistics.quantiles(times, n=10)[0]
