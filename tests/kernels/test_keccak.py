"""Keccak-256 in C equals the library's, for every way it hashes several messages at once."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable

import pytest
from Crypto.Hash import keccak as reference

from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import keccak, keccak_each
from efedllm.commitments.leaves import act_leaf
from efedllm.commitments.merkle import NODE, PAD, merkle
from efedllm.kernels.keccak import KeccakLibrary, keccak_library, load_keccak
from tests.model_fixtures import ROOT

COUNTS = (1, 2, 3, 4, 7, 8, 9, 11, 12, 16, 21)


def plain(data: bytes) -> bytes:
    return reference.new(digest_bits=256, data=data).digest()


def text(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_256(seed.to_bytes(4, "big")).digest(size)


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> list[KeccakLibrary]:
    """The installed library, and where there is a compiler those without wide instructions."""
    made = [found for found in [keccak_library()] if found is not None]
    compiler = shutil.which("cc")
    for level in (0, 1) if compiler else ():
        out = tmp_path_factory.mktemp("keccak") / f"{level}.so"
        source = ROOT / "efedllm" / "kernels" / "keccak.c"
        flags = ["-std=gnu11", "-O2", "-Wno-psabi", "-fPIC", "-shared", f"-DEFL_MOST_LEVEL={level}"]
        subprocess.run([str(compiler), *flags, "-o", str(out), str(source)], check=True)
        made.append(load_keccak(out))
    if not made:
        pytest.skip("no native keccak in this installation, and no compiler")
    return made


@pytest.mark.parametrize("size", [1, 64, 65, 92, 135, 136, 137, 271, 272, 300])
def test_digests(builds: list[KeccakLibrary], size: int) -> None:
    for count in COUNTS:
        messages = [text(size, seed) for seed in range(count)]
        want = [plain(message) for message in messages]
        assert keccak_each(messages) == want
        for native in builds:
            assert native.digests(b"".join(messages), size) == b"".join(want)


def test_known_answers() -> None:
    """Of the empty string and of "abc", as Ethereum publishes them."""
    assert keccak(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak(b"abc").hex() == "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"
    assert keccak_each([]) == []


def level_by_level(leaves: list[bytes], pad: bytes = PAD) -> bytes:
    """The tree as docs/protocol.md has it: padded to a power of two with K(03)."""
    while len(leaves) & (len(leaves) - 1):
        leaves = [*leaves, pad]
    while len(leaves) > 1:
        leaves = [plain(NODE + left + right) for left, right in zip(leaves[::2], leaves[1::2], strict=True)]
    return leaves[0]


def test_merkle_roots(builds: list[KeccakLibrary]) -> None:
    for count in (*range(1, 36), 64, 191):
        leaves = [text(32, seed) for seed in range(count)]
        want = level_by_level(leaves)
        assert merkle(leaves) == want
        for native in builds:
            assert native.merkle(b"".join(leaves), PAD) == want


def test_a_boundary_has_the_same_leaves_row_by_row_and_at_once() -> None:
    rows = [text(64, seed) for seed in range(13)]
    together = BoundaryTree(bytes(32), 1, WireDtype.F32, 16)
    together.append(b"".join(rows))
    alone = BoundaryTree(bytes(32), 1, WireDtype.F32, 16)
    for row in rows:
        alone.append(row)
    want = [act_leaf(bytes(32), 1, at, WireDtype.F32, 16, row) for at, row in enumerate(rows)]
    assert list(together.leaves) == list(alone.leaves) == want


@pytest.mark.parametrize(
    "call",
    [
        lambda native: native.digests(bytes(7), 2),
        lambda native: native.digests(b"", 0),
        lambda native: native.merkle(b"", PAD),
        lambda native: native.merkle(bytes(33), PAD),
        lambda native: native.merkle(bytes(32), b""),
    ],
)
def test_what_is_not_whole_is_refused(builds: list[KeccakLibrary], call: Callable[[KeccakLibrary], bytes]) -> None:
    with pytest.raises(ValueError, match="not"):
        call(builds[0])
