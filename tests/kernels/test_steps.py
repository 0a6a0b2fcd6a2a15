"""The steps in C give the numbers of those in torch, bit for bit, and so does any other build of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efedllm.engine.exact.cache import ExactCache
from efedllm.engine.exact.products import Kernel
from efedllm.engine.exact.rope import Rotation, make_tables
from efedllm.engine.exact.steps import Heads, NativeSteps, Norm, Steps, TorchSteps, steps_for
from efedllm.kernels.steps import MOST_DIM, load_steps, steps_library
from efedllm.sampling.exact import sample_in_c, sample_in_numpy
from efedllm.sampling.float import SamplingSpec
from tests.model_fixtures import ROOT

SOURCE = ROOT / "efedllm" / "kernels" / "steps.c"
FLAGS = ("-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
BUILDS = {
    "unoptimised": ("-O0", "-DEFL_MOST_LEVEL=0"),
    "plain": ("-O3", "-DEFL_MOST_LEVEL=0"),
    "avx2": ("-O3", "-DEFL_MOST_LEVEL=1"),
}
PLAIN = TorchSteps()

pytestmark = pytest.mark.skipif(steps_library() is None, reason="no native steps in this installation")


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> list[NativeSteps]:
    """The installed library, and where there is a compiler three with narrower instructions."""
    library = steps_library()
    assert library is not None
    made = [NativeSteps(library)]
    compiler = shutil.which("cc")
    for name, flags in BUILDS.items() if compiler else ():
        out = tmp_path_factory.mktemp("steps") / f"{name}.so"
        subprocess.run([str(compiler), *FLAGS, *flags, "-o", str(out), str(SOURCE), "-lm"], check=True)
        made.append(NativeSteps(load_steps(out)))
    return made


def numbers(rng: np.random.Generator, *shape: int) -> Tensor:
    """float64 over a dozen orders of magnitude, with zeros, and now and then a row of zeros."""
    values = rng.normal(size=shape) * 10.0 ** rng.integers(-9, 4, shape)
    values[rng.random(shape) < 0.1] = 0
    if rng.random() < 0.2:
        values[0] = 0
    return torch.from_numpy(values)


@given(n=st.integers(1, 4), d=st.integers(1, 70), seed=st.integers(0, 1 << 30), mean=st.booleans())
@settings(max_examples=60, deadline=None)
def test_norms(builds: list[NativeSteps], n: int, d: int, seed: int, mean: bool) -> None:
    rng = np.random.default_rng(seed)
    norm = Norm(numbers(rng, d), 1e-6, numbers(rng, d) if mean else None)
    x = (numbers(rng, n, d) + (100.0 if mean else 0.0)).float()
    for native in builds:
        assert torch.equal(native.norm(norm, x), PLAIN.norm(norm, x))


@given(n=st.integers(1, 4), width=st.integers(1, 40), seed=st.integers(0, 1 << 30))
@settings(max_examples=60, deadline=None)
def test_activations_and_sums(builds: list[NativeSteps], n: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, x = numbers(rng, n, 2 * width), numbers(rng, n, 2 * width).float()
    odd = torch.tensor([-0.0, 1e-40, -1e-39, 3e38], dtype=torch.float32)[: 2 * width]
    x[0, : len(odd)], y[0, : len(odd)] = odd, 0
    for native in builds:
        assert torch.equal(native.gated(y), PLAIN.gated(y))
        assert torch.equal(native.gelu(y), PLAIN.gelu(y))
        assert native.add(x, y).numpy().tobytes() == PLAIN.add(x, y).numpy().tobytes()
        own, finite = native.canonical(y)
        assert finite
        assert own.numpy().tobytes() == PLAIN.canonical(y)[0].numpy().tobytes()


@given(
    vocab=st.sampled_from([1, 7, 8, 50, 3000]),
    sampling=st.tuples(
        st.sampled_from([1, 700, 5000]), st.sampled_from([0, 3, 100]), st.sampled_from([1, 9 * 10**5, 10**6])
    ),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=40, deadline=None)
def test_samplers(builds: list[NativeSteps], vocab: int, sampling: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(0, 3, (3, vocab)), 1).astype(np.float32)
    spec = SamplingSpec(*sampling, rng.bytes(32))
    want = sample_in_numpy(logits, spec, seed).tolist()
    for native in builds:
        assert sample_in_c(native.library, logits, spec, seed).tolist() == want


@given(
    groups=st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)]),
    dim=st.sampled_from([2, 6, 24, 32, 80, MOST_DIM]),
    cut=st.sampled_from([(0, 1), (0, 8), (5, 1), (40, 3), (70, 1), (3, 9), (0, 35), (20, 22)]),
    window=st.sampled_from([None, 1, 4, 17, 1000]),
    seed=st.integers(0, 1 << 30),
    kind=st.sampled_from(["turned", "normed", "still"]),
)
@settings(max_examples=60, deadline=None)
def test_attention(
    builds: list[NativeSteps],
    groups: tuple[int, int],
    dim: int,
    cut: tuple[int, int],
    window: int | None,
    seed: int,
    kind: str,
) -> None:
    """Positions before, then new ones, as the layers do it."""
    rng = np.random.default_rng(seed)
    norms = [Norm(numbers(rng, dim), 1e-5) if kind == "normed" else None for _ in range(2)]
    heads = Heads(*groups, dim, 1 / dim**0.5, window, *norms)
    rotation = None
    if kind != "still":
        rotation = Rotation(make_tables(dim, 128, {"rope_type": "default", "rope_theta": 10000.0}))
    inputs = [numbers(rng, count, heads.together * dim) for count in cut if count]
    want = list(attended(PLAIN, heads, rotation, inputs))
    for native in builds:
        for got, expected in zip(attended(native, heads, rotation, inputs), want, strict=True):
            assert torch.equal(got, expected)


def attended(steps: Steps, heads: Heads, rotation: Rotation | None, inputs: list[Tensor]) -> Iterator[Tensor]:
    cache = ExactCache(2, heads.kv_heads, heads.dim)
    first, last = heads.heads, heads.heads + heads.kv_heads
    for qkv in inputs:
        positions = torch.arange(cache.length, cache.length + len(qkv))
        q, scales = steps.quantized(heads, qkv.clone(), None if rotation is None else rotation.at(positions))
        cache.reserve(len(qkv))
        keys, values = q[:, first:last].transpose(0, 1), q[:, last:].transpose(0, 1)
        cached = cache.append(1, 0, keys, values, scales[:, first:last].t(), scales[:, last:].t())
        yield scales
        yield q.double()
        yield steps.attend(heads, q[:, :first], scales[:, :first], cached)
        cache.commit(len(qkv))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_does_not_become_one(builds: list[NativeSteps], odd: float) -> None:
    heads = Heads(2, 1, 8, 0.25, None, None, None)
    qkv = torch.ones(2, 32, dtype=torch.float64)
    x = torch.ones(2, 32)
    qkv[1, 3], x[1, 3] = odd, odd
    norm = Norm(torch.ones(32, dtype=torch.float64), 1e-6)
    for native in builds:
        assert not native.norm(norm, x)[1].isfinite().all()
        assert not native.add(x, qkv)[1].isfinite().all()
        assert not native.canonical(qkv)[1]
        *_, out = attended(native, heads, None, [qkv.clone()])
        assert not out[1].isfinite().all()
        assert out[0].isfinite().all()


def test_longer_heads_are_left_to_torch() -> None:
    assert isinstance(steps_for(Kernel.NATIVE, MOST_DIM), NativeSteps)
    for kernel, dim in ((Kernel.NATIVE, MOST_DIM + 2), (Kernel.INT8, 64)):
        assert isinstance(steps_for(kernel, dim), TorchSteps)


def test_extreme_heads_do_not_overflow(builds: list[NativeSteps]) -> None:
    """Every product of every sum at its largest, for the longest heads."""
    heads = Heads(2, 1, MOST_DIM, 1.0, None, None, None)
    for sign in (1.0, -1.0):
        qkv = torch.full((3, 4 * MOST_DIM), sign, dtype=torch.float64)
        qkv[:, : 2 * MOST_DIM] = 1.0
        want = list(attended(PLAIN, heads, None, [qkv]))
        for native in builds:
            for got, expected in zip(attended(native, heads, None, [qkv]), want, strict=True):
                assert torch.equal(got, expected)
