"""Executors of any layer range of any registered model: fetched by hash, self-tested, bounded in memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from efedllm.chain.types import ModelInfo
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import keccak
from efedllm.engine.protocol import Executor, StepItem, constants_of
from efedllm.errors import ModelError
from efedllm.models.manifest import Manifest
from efedllm.models.source import fetch_published, is_url, open_published
from efedllm.settings import Device
from efedllm_verifier.statistic import MEASURED, UNCALIBRATED, BackendError, DeviationLimits, compare

T = TypeVar("T")
Loader = Callable[[Path, int, int], Executor]

GOLDEN_POSITIONS = 24
GOLDEN_PREFILL = 16
# Half of the limit for nodes: a backend that deviates this far must not accuse anyone.
SELF_LIMIT = 0.5


def load_shard(directory: Path, lo: int, hi: int, ram: int | None = None, device: Device = "cpu") -> Executor:
    """The real engine, one compute thread, within `ram` bytes if given, on `device` or, for encoders, the CPU; torch is
    imported here and nowhere else in this package."""
    from efedllm.engine.select import device_for, load_executor

    return load_executor(directory, lo, hi, threads=1, ram=ram, device=device_for(directory, device))


def check_device(device: Device) -> None:
    """Raises ModelError "no-device" where `device` is missing, and "inexact-device" where it rounds otherwise than the
    exact profile."""
    from efedllm.engine.exact.device import check_rounding
    from efedllm.engine.memory.layer_streaming import check_device as check

    check(device)
    check_rounding(device)


def warm_up() -> None:
    """Import what the first load needs. It takes seconds, so it is done before the commit phase."""
    import efedllm.engine.select  # noqa: F401


class EngineCache:
    """Caches executors by (manifest hash, layer range).

    When their weights exceed `max_bytes`, the least recently used are dropped. With `one`, all others are dropped
    before an executor is loaded; an audit that still runs keeps its own alive. Loads run one at a time. All executors
    belong to one thread of this object: call them through `run`. Call `close` when done.
    """

    def __init__(
        self, home: Path, sources: Sequence[str], max_bytes: int, loader: Loader = load_shard, *, one: bool = False
    ) -> None:
        self._home = home
        self._sources = tuple(sources)
        self._max_bytes = max_bytes
        self._one = one
        self._loader = loader
        self._engines: OrderedDict[tuple[bytes, int, int], Executor] = OrderedDict()
        self._limits: dict[bytes, DeviationLimits] = {}
        self._locks: dict[tuple[bytes, int, int], asyncio.Lock] = {}
        self._fetching: dict[bytes, asyncio.Lock] = {}
        # Loads of other ranges would put engines beside the one that there is room for.
        self._loading = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def close(self) -> None:
        """Drop every engine and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._engines.clear()

    @property
    def held(self) -> tuple[tuple[bytes, int, int], ...]:
        """(manifest hash, lo, hi) of the engines in memory, least recently used first."""
        return tuple(self._engines)

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Call `work` on the engines' thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args))

    async def executor(self, model: ModelInfo, lo: int, hi: int, mirrors: Sequence[str] = ()) -> Executor:
        """A self-tested executor of layers [lo, hi). `mirrors`: where else to fetch from, tried after our sources.

        Raises ModelError when the weights or the registered manifest cannot be had, BackendError when the self-test
        fails, the registered shape is not the manifest's, or an exact model names other constants than ours.
        """
        # Not by the weights: the manifest says how they are computed and what is tolerated.
        key = (model.manifest_hash, lo, hi)
        # Two audits that need the same weights must not fetch and load them twice.
        async with self._locks.setdefault(key, asyncio.Lock()):
            engine = self._engines.get(key)
            if engine is None:
                directory = await self._published(model, lo, hi, mirrors)
                manifest = await asyncio.to_thread(Manifest.load, directory)
                self._limits[model.manifest_hash] = DeviationLimits.of(manifest.tolerance)
                async with self._loading:
                    if self._one:
                        self._engines.clear()
                    engine = await self.run(self._loader, directory, lo, hi)
                    self._engines[key] = engine
                    self._evict(key)
            else:
                self._engines.move_to_end(key)
        check_registered(engine, model)
        golden = self._home / "golden" / f"{model.manifest_hash.hex()}-{lo}-{hi}.npy"
        await self.run(self_test, engine, golden, self.limits(model))
        return engine

    def limits(self, model: ModelInfo) -> DeviationLimits:
        """What a model's hops are measured by, from its registered manifest; known once an executor of it was had."""
        return self._limits.get(model.manifest_hash, UNCALIBRATED)

    def _evict(self, keep: tuple[bytes, int, int]) -> None:
        while sum(engine.weight_bytes for engine in self._engines.values()) > self._max_bytes:
            oldest = next((key for key in self._engines if key != keep), None)
            if oldest is None:
                return
            del self._engines[oldest]

    async def _published(self, model: ModelInfo, lo: int, hi: int, mirrors: Sequence[str]) -> Path:
        """A directory with verified files for [lo, hi): one of our own where it fits, else the fetched cache."""
        root, registered = model.weights_root, model.manifest_hash
        for source in self._sources:
            if is_url(source):
                continue
            try:
                await asyncio.to_thread(open_published, Path(source), root, lo, hi, registered)
            except ModelError:
                continue
            return Path(source)
        directory = self._home / "models" / registered.hex()
        # Ranges of one model share files: fetched twice at once they would spoil each other's.
        async with self._fetching.setdefault(registered, asyncio.Lock()):
            await fetch_published([*self._sources, *mirrors], directory, root, lo, hi, expected_hash=registered)
        return directory


def check_registered(executor: Executor, model: ModelInfo) -> None:
    """Raises BackendError unless the executor has the model's registered shape, profile and constants."""
    if (executor.layers, executor.hidden) != (model.layers, model.hidden):
        raise BackendError("the model was registered with another shape than its manifest has")
    ours = constants_of(executor) or bytes(32)
    if ours != model.constants_hash:
        raise BackendError(f"our constants are 0x{ours.hex()}, the registered ones 0x{model.constants_hash.hex()}")


def golden_input(executor: Executor) -> NDArray[Any]:
    """A fixed input from keccak counters, the same everywhere: int32 [n] ids or float32 [n, hidden] in [-1, 1)."""
    count = min(GOLDEN_POSITIONS, executor.max_positions)
    elements = count if executor.has_embedding else count * executor.hidden
    stream = b"".join(keccak(b"golden" + block.to_bytes(4, "big")) for block in range(-(-elements // 8)))
    words = np.frombuffer(stream, dtype="<u4")[:elements]
    if executor.has_embedding:
        return (words % executor.vocab).astype(np.int32)
    # 24 bits convert to float32 exactly.
    return ((words >> 8).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)).reshape(count, executor.hidden)


def self_test(executor: Executor, golden: Path, limits: DeviationLimits = MEASURED) -> None:
    """Prefill and decode of the golden input agree with each other and with the vector stored at the first load.

    Bit for bit with an exact engine, else within half of what a node may deviate by `limits`. Raises BackendError
    otherwise: then this backend must not accuse anyone.
    """
    given = golden_input(executor)
    exact = constants_of(executor) is not None
    residual = executor.embed(given) if executor.has_embedding else given
    ours = executor.step([StepItem(executor.new_sequence(), given)])[0]
    if not golden.exists():
        if not executor.whole_texts:
            _agree(_decoded(executor, given), ours, residual, "decode and prefill differ", exact, limits)
        golden.parent.mkdir(parents=True, exist_ok=True)
        temporary = golden.with_suffix(".tmp.npy")
        np.save(temporary, ours)
        temporary.replace(golden)
        return
    try:
        stored = np.load(golden, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BackendError(f"the golden vector {golden.name} cannot be read: delete it") from error
    if stored.shape != ours.shape:
        raise BackendError(f"the golden vector {golden.name} has another shape: delete it")
    _agree(ours, stored, residual, "the backend drifted since the golden vector was stored", exact, limits)


def _decoded(executor: Executor, given: NDArray[Any]) -> NDArray[Any]:
    """What the executor makes of `given` when only its beginning is a prefill."""
    sequence = executor.new_sequence()
    split = min(GOLDEN_PREFILL, len(given))
    parts = [executor.step([StepItem(sequence, given[:split])])[0]]
    parts += [executor.step([StepItem(sequence, given[at : at + 1])])[0] for at in range(split, len(given))]
    return np.concatenate(parts)


def _agree(
    left: NDArray[Any], right: NDArray[Any], residual: NDArray[Any], what: str, exact: bool, limits: DeviationLimits
) -> None:
    if exact:
        if left.tobytes() != right.tobytes():
            raise BackendError(f"{what}, in an exact model")
        return
    statistic = compare(left, right, residual, WireDtype.F32, limits)
    if not statistic.worst <= SELF_LIMIT:
        raise BackendError(f"{what}: statistic {statistic.worst:.3g}")
