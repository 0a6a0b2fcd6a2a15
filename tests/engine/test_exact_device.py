"""The exact profile on a device other than the CPU: the committed bytes, or a refusal.

`far_device` stands in for a GPU where there is none: it is as strict as CUDA about what may be mixed and multiplied,
and divides by numbers of the CPU as CUDA does. The last tests need a CUDA device.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efedllm.compression.profile import settle_profile
from efedllm.engine.compare import same_bits
from efedllm.engine.exact.arithmetic import canonical, gelu_tanh, layer_norm, quantize, rms_norm, silu
from efedllm.engine.exact.device import check_rounding
from efedllm.engine.exact.products import Kernel, exact_kernels
from efedllm.engine.exact.rope import Rotation, make_tables, rotate
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import StepItem
from efedllm.engine.select import load_executor
from efedllm.errors import ModelError
from efedllm.models.manifest import Manifest
from efedllm.sizes import parse_size
from tests.engine.exact_golden import GOLDEN, PROMPT
from tests.engine.exact_helpers import MODELS, ExactPipeline, digest, load_parts, stream_ids
from tests.engine.far_device import FAR, FarDevice, far_device

NAMES = [f"{family}-{form}" for family, form in MODELS]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Every operator that a step may use on the device: element-wise IEEE operations, sums and products of integers, maxima,
# and what only moves numbers. Whatever else rounds in a way that nothing promises.
_COMPUTE = (
    "__lshift__ __rshift__ _int_mm abs add add_ all amax bitwise_not bmm clamp_ div div_ eq floor_divide "
    "ge lt mm mul mul_ ne remainder round round_ rsub sqrt sub sub_ sum "
)
_MOVE = (
    "_local_scalar_dense _to_copy _unsafe_view alias cat clone constant_pad_nd copy_ detach empty expand "
    "fill_ full index masked_fill_ new_zeros ones permute scalar_tensor select slice split squeeze stack "
    "t transpose tril triu unsqueeze view where zero_ zeros "
)
ALLOWED = frozenset((_COMPUTE + _MOVE).split())


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[FarDevice]:
    monkeypatch.setattr("efedllm.engine.exact.shard.check_device", lambda _: None)
    with far_device() as device:
        yield device


@pytest.fixture
def changed(far: FarDevice) -> Iterator[FarDevice]:
    """A device that is not known yet."""
    exact_kernels.cache_clear()
    yield far
    exact_kernels.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_another_device_gives_the_committed_bytes(name: str, models: dict[str, Path], far: FarDevice) -> None:
    engines = load_parts(models[name], 2, device=FAR)
    assert [engine.kernel for engine in engines] == [Kernel.INT8] * 2
    far.used.clear()
    assert digest(ExactPipeline(engines).alone(PROMPT, (30, 31))) == GOLDEN[name]
    assert {name.split(".")[1] for name in far.used} <= ALLOWED


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("kernel", [Kernel.FLOAT32, Kernel.FLOAT64])
@pytest.mark.parametrize("name", ["llama-None", "qwen3-mixed"])
def test_its_other_products_give_the_same_bytes(kernel: Kernel, name: str, models: dict[str, Path]) -> None:
    assert exact_kernels(FAR) == (Kernel.INT8, Kernel.FLOAT32, Kernel.FLOAT64)
    assert digest(ExactPipeline(load_parts(models[name], 1, kernel, device=FAR)).alone(PROMPT)) == GOLDEN[name]


def _tightest(directory: Path) -> ExactShardEngine:
    """With the least memory that the errors ask for."""
    ram = 1
    for _ in range(9):
        try:
            return ExactShardEngine.load(directory, 0, 8, device=FAR, ram=ram)
        except ModelError as error:
            ram = parse_size(error.hint.split()[2])
    raise AssertionError(f"{ram} bytes are still too few")


class _HereExecutor(Executor):
    """Runs what is submitted at once: the stand-in device is known to its own thread alone."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


@pytest.mark.usefixtures("far")
def test_batches_taps_and_a_bounded_memory_are_those_of_the_cpu(
    published: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efedllm.engine.memory.layer_streaming.ThreadPoolExecutor", _HereExecutor)
    directory = published("bundled", 1.0, "int8")
    tight = _tightest(directory)
    assert tight.tiers is not None
    assert tight.tiers.resident < 8
    near, there = (ExactShardEngine.load(directory, 0, 8, device=where) for where in ("cpu", FAR))
    assert same_bits(near, there)
    assert _tapped(there, 1, 3, 100) == _tapped(near, 1, 3, 100)
    assert _tapped(tight, 3) == _tapped(near, 3)


def _tapped(engine: ExactShardEngine, *counts: int) -> list[tuple[bytes, bytes]]:
    items = [StepItem(engine.new_sequence(), stream_ids(f"batch {n}", n)) for n in counts]
    return [(t.states.tobytes(), t.taps.tobytes()) for t in engine.step_with_taps(items)]


@pytest.mark.usefixtures("far")
def test_every_step_has_the_bits_of_the_cpu_before_they_are_rounded() -> None:
    """In float64: a state of float32 hides most of what a division by reciprocals would change."""
    rng = np.random.default_rng(11)
    x = torch.from_numpy(rng.normal(size=(400, 48)) * 10.0 ** rng.integers(-6, 6, (400, 1)))
    weight, bias = torch.linspace(0.5, 2, 48, dtype=torch.float64), torch.linspace(-1, 1, 48, dtype=torch.float64)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    tables = make_tables(48, 400, rope)
    positions = torch.arange(400)

    def steps(device: str) -> list[Tensor]:
        y, w, b = x.to(device), weight.to(device), bias.to(device)
        cos, sin = Rotation(tables, device).at(positions.to(device))
        turned = rotate(y.view(400, 1, 48), cos, sin)
        return [
            *quantize(y),
            rms_norm(y, w, 1e-6),
            layer_norm(y, w, b, 1e-5),
            silu(y),
            gelu_tanh(y),
            canonical(y),
            turned,
        ]

    for near, there in zip(steps("cpu"), steps(FAR), strict=True):
        assert near.numpy().tobytes() == there.cpu().numpy().tobytes()


@pytest.mark.usefixtures("far")
def test_the_embedding_alone_is_that_of_the_cpu(models: dict[str, Path]) -> None:
    for name in ("llama-None", "gpt2-None"):
        near, there = (ExactShardEngine.load(models[name], 0, 1, device=where) for where in ("cpu", FAR))
        assert near.embed(PROMPT).tobytes() == there.embed(PROMPT).tobytes()


@pytest.mark.usefixtures("far")
def test_what_is_not_finite_is_refused_there_too(models: dict[str, Path]) -> None:
    engine = ExactShardEngine.load(models["llama-None"], 1, 2, device=FAR)
    states = np.full((2, engine.hidden), np.inf, np.float32)
    with pytest.raises(ModelError) as caught:
        engine.step([StepItem(engine.new_sequence(), states)])
    assert caught.value.code == "bad-input"


def test_a_device_that_divides_by_reciprocals_is_refused(models: dict[str, Path], far: FarDevice) -> None:
    """CUDA does so with divisors of the CPU; a device that always does cannot compute the profile."""
    third = torch.full((), 3.0, device=FAR)
    x = torch.from_numpy(np.arange(1, 2000, dtype=np.float64)).to(FAR)
    assert torch.equal((x / third).cpu(), x.cpu() / 3)
    assert not torch.equal((x / 3).cpu(), x.cpu() / 3)
    check_rounding(FAR)
    far.divides = False
    with pytest.raises(ModelError) as caught:
        ExactShardEngine.load(models["llama-None"], 0, 1, device=FAR)
    assert caught.value.code == "inexact-device"
    assert "division" in caught.value.message


def _saturating(left: Tensor, right: Tensor) -> Tensor:
    """int32 [n, m] as machines without VNNI add: pairs of products in saturating int16."""
    products = left.long().unsqueeze(2) * right.long().unsqueeze(0)
    pairs = products.view(len(left), -1, 2, right.shape[1]).sum(2)
    sums: Tensor = pairs.clamp(-32768, 32767).sum(1).to(torch.int32)
    return sums


def test_products_that_are_not_exact_are_left_out(changed: FarDevice) -> None:
    changed.int8_product = _saturating
    assert exact_kernels(FAR) == (Kernel.FLOAT32, Kernel.FLOAT64)


def test_a_device_without_any_exact_product_is_refused(models: dict[str, Path], changed: FarDevice) -> None:
    changed.int8_product = _saturating
    changed.product = lambda func, *parts: func(*(part.to(torch.bfloat16) for part in parts)).to(parts[0].dtype)
    with pytest.raises(ModelError) as caught:
        ExactShardEngine.load(models["llama-None"], 0, 1, device=FAR)
    assert caught.value.code == "inexact-device"


def test_a_node_compares_a_layer_with_the_cpu_before_it_serves(
    published: Callable[..., Path], tmp_path: Path, changed: FarDevice
) -> None:
    """Products that are right for the operands tried at start and wrong for others."""
    directory = tmp_path / "exact"
    shutil.copytree(published("llama", 0.9, "int8"), directory)
    settle_profile(directory, "exact")
    layers = Manifest.load(directory).layers
    assert load_executor(directory, 0, layers, device=FAR).hi == layers
    honest = changed.int8_product

    def off_by_one(left: Tensor, right: Tensor) -> Tensor:
        sums = honest(left, right)
        return sums + (sums % 1000 == 7).to(torch.int32)

    assert exact_kernels(FAR)[0] is Kernel.INT8
    changed.int8_product = off_by_one
    with pytest.raises(ModelError) as caught:
        load_executor(directory, 0, layers, device=FAR)
    assert caught.value.code == "inexact-device"
    assert "layer" in caught.value.message


@pytest.mark.usefixtures("far")
def test_the_stand_in_is_as_strict_as_a_gpu() -> None:
    x = torch.ones(4, 4, device=FAR)
    with pytest.raises(RuntimeError, match="two devices"):
        x + torch.ones(4, 4)
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    with pytest.raises(RuntimeError, match="integers"):
        x.long() @ x.long()
    with pytest.raises(RuntimeError, match="_int_mm"):
        torch._int_mm(x.to(torch.int8), x.to(torch.int8))


@CUDA
@pytest.mark.parametrize("kernel", [Kernel.INT8, Kernel.FLOAT32, Kernel.FLOAT64])
def test_cuda_gives_the_committed_bytes(kernel: Kernel, models: dict[str, Path]) -> None:
    assert kernel in exact_kernels("cuda")
    for name in NAMES:
        pipeline = ExactPipeline(load_parts(models[name], 2, kernel, device="cuda"))
        for cuts in ((), (7, 30, 31), range(1, len(PROMPT))):
            assert digest(pipeline.alone(PROMPT, cuts)) == GOLDEN[name], name


@CUDA
def test_cuda_passes_what_a_node_asks_at_start(published: Callable[..., Path], tmp_path: Path) -> None:
    directory = tmp_path / "exact"
    shutil.copytree(published("llama", 0.9, "int8"), directory)
    settle_profile(directory, "exact")
    check_rounding("cuda")
    assert load_executor(directory, 0, Manifest.load(directory).layers, device="cuda").hidden
