"""Where the work on layers runs: in this process, or as tasks of a Ray cluster. Results come in the order of the work,
so that files and plans are the same."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from efedllm.compression.encode import Encoded
from efedllm.compression.options import EngineName
from efedllm.errors import ConfigError

Work = TypeVar("Work")
Result = TypeVar("Result")


class Runner(Protocol):
    def map(self, task: Callable[[Work], Result], works: Iterable[Work]) -> Iterator[Result]:
        """Results in the order of `works`, of which few are in memory at a time."""
        ...

    def close(self) -> None: ...


class InProcess:
    def map(self, task: Callable[[Work], Result], works: Iterable[Work]) -> Iterator[Result]:
        return map(task, works)

    def close(self) -> None:
        return


class OnRay:
    """Each piece of work is a task that takes as many CPUs as this process has threads: the same thread count gives the
    same bytes. Connects to the cluster that RAY_ADDRESS names, else starts one on this machine and ends it at close.

    Workers load torch while this process still reads the calibration text, and tasks read their tensors where the
    object store has them.
    """

    def __init__(self) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "no-ray", "The engine ray needs the package ray, which is not installed.", "pip install ray==2.60.0"
            ) from error
        self._ray = ray
        self._threads = torch.get_num_threads()
        self._started = not ray.is_initialized()
        if self._started:
            # A dashboard is a setting of a cluster of our own.
            own: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
            ray.init(log_to_driver=False, **own)
        cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        workers = max(1, cpus // self._threads)
        self._limit = workers + 1
        _ship_tensors_as_arrays()
        ready = ray.remote(num_cpus=self._threads)(_ship_tensors_as_arrays)
        # Not waited for: tasks that come before a worker is ready wait in Ray.
        self._ready = [ready.remote() for _ in range(workers)]

    def map(self, task: Callable[[Work], Result], works: Iterable[Work]) -> Iterator[Result]:
        remote = self._ray.remote(num_cpus=self._threads)(_run)
        running: deque[Any] = deque()
        for work in works:
            running.append(remote.remote(task, self._threads, work))
            if len(running) >= self._limit:
                yield self._ray.get(running.popleft())
        while running:
            yield self._ray.get(running.popleft())

    def close(self) -> None:
        if self._started:
            self._ray.shutdown()


def open_runner(engine: EngineName) -> Runner:
    """Raises ConfigError "no-ray"."""
    return OnRay() if engine == "ray" else InProcess()


def _run(task: Callable[[Any], Any], threads: int, work: Any) -> Any:
    """In a worker process."""
    _ship_tensors_as_arrays()
    torch.set_num_threads(threads)
    result = task(work)
    return [_portable(one) for one in result] if isinstance(result, list) else result


def _portable(one: Any) -> Any:
    """Parts are views of arrays, which cannot be pickled."""
    if not isinstance(one, Encoded):
        return one
    return replace(one, parts={name: replace(part, data=bytes(part.data)) for name, part in one.parts.items()})


def _ship_tensors_as_arrays() -> None:
    """Ray keeps arrays apart from what it pickles, and gives out views of them; tensors it would pickle whole."""
    from ray.util import register_serializer

    register_serializer(Tensor, serializer=_to_array, deserializer=_from_array)


def _to_array(tensor: Tensor) -> tuple[Any, torch.dtype, tuple[int, ...]]:
    flat = tensor.detach().contiguous().view(-1)
    return flat.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape)


def _from_array(parts: tuple[Any, torch.dtype, tuple[int, ...]]) -> Tensor:
    """Over memory of the object store, which cannot be written to: nothing here does."""
    data, dtype, shape = parts
    if data.size == 0:
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.asarray(data)).view(dtype).view(shape)
