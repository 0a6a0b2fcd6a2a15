"""Leaves, identifiers and the tree of a boundary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efedllm.commitments.boundary import BoundaryTree, verify_boundary
from efedllm.commitments.canonical import WireDtype, encode
from efedllm.commitments.hashing import keccak, sha256
from efedllm.commitments.leaves import act_leaf, batch_root, boundary_root, chunk_hash, hop_leaf, job_id
from efedllm.commitments.merkle import merkle
from efedllm.errors import ProtocolError
from tests.commitments.commitment_strategies import h32

JOB = keccak(b"job")
NODE = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"


def tag(text: str) -> bytes:
    return text.encode().ljust(16, b"\0")


def test_keccak_is_ethereums() -> None:
    assert keccak(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak(b"abc").hex() == "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"
    assert sha256(b"abc").hex().startswith("ba7816bf8f01cfea")


def test_layouts_byte_by_byte() -> None:
    session = keccak(b"session")
    assert job_id(session, 7) == keccak(b"\x00" + tag("EFL.job.1") + session + (7).to_bytes(8, "big"))
    row = bytes(range(8))
    leaf = b"\x00" + tag("EFL.act.1") + JOB + (3).to_bytes(2, "big") + (9).to_bytes(4, "big")
    leaf += b"\x01" + (2).to_bytes(4, "big") + sha256(row)
    assert act_leaf(JOB, 3, 9, WireDtype.F32, 2, row) == keccak(leaf)
    assert hop_leaf(JOB, session) == keccak(b"\x00" + tag("EFL.hop.1") + JOB + session)
    leaves = [keccak(b"a"), keccak(b"b"), keccak(b"c")]
    root = b"\x02" + tag("EFL.act.1") + JOB + (3).to_bytes(2, "big") + (3).to_bytes(4, "big") + merkle(leaves)
    assert boundary_root(JOB, 3, leaves) == keccak(root)
    batch = b"\x02" + tag("EFL.batch.1") + bytes.fromhex(NODE[2:]) + (5).to_bytes(8, "big") + (6).to_bytes(8, "big")
    assert batch_root(NODE, 5, 6, leaves) == keccak(batch + (3).to_bytes(4, "big") + merkle(leaves))
    assert chunk_hash(leaves) == keccak(b"".join(leaves))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 4), st.sampled_from([1, 2]))
def test_chunks_do_not_matter_for_the_root(chunks: list[int], dim: int, code: int) -> None:
    dtype, n = WireDtype(code), sum(chunks)
    array = np.arange(n * dim, dtype=np.float32).reshape(n, dim)
    tree = BoundaryTree(JOB, 1, dtype, dim)
    done = 0
    for size in chunks:
        hashed = tree.append(encode(array[done : done + size], dtype))
        assert hashed == tree.chunk(done, size) == chunk_hash(tree.leaves[done : done + size])
        done += size
    assert tree.length == n
    assert list(tree.leaves) == [act_leaf(JOB, 1, i, dtype, dim, encode(array[i : i + 1], dtype)) for i in range(n)]
    assert tree.root() == boundary_root(JOB, 1, tree.leaves)
    assert verify_boundary(JOB, 1, dtype, dim, encode(array, dtype), tree.root())


@given(st.integers(1, 9), st.data())
def test_every_changed_bit_of_a_boundary_is_seen(n: int, data: st.DataObject) -> None:
    array = np.linspace(-2, 2, n * 3, dtype=np.float32).reshape(n, 3)
    payload = encode(array, WireDtype.BF16)
    tree = BoundaryTree(JOB, 2, WireDtype.BF16, 3)
    tree.append(payload)
    changed = bytearray(payload)
    changed[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert not verify_boundary(JOB, 2, WireDtype.BF16, 3, bytes(changed), tree.root())


def test_the_root_binds_job_boundary_dtype_dim_order_and_length() -> None:
    payload = encode(np.arange(8, dtype=np.float32).reshape(4, 2), WireDtype.F32)
    tree = BoundaryTree(JOB, 1, WireDtype.F32, 2)
    tree.append(payload)
    root = tree.root()
    assert verify_boundary(JOB, 1, WireDtype.F32, 2, payload, root)
    assert not verify_boundary(keccak(b"other"), 1, WireDtype.F32, 2, payload, root)
    assert not verify_boundary(JOB, 2, WireDtype.F32, 2, payload, root)
    assert not verify_boundary(JOB, 1, WireDtype.F32, 1, payload, root)
    assert not verify_boundary(JOB, 1, WireDtype.BF16, 4, payload, root)
    assert not verify_boundary(JOB, 1, WireDtype.F32, 2, payload[8:] + payload[:8], root)
    assert not verify_boundary(JOB, 1, WireDtype.F32, 2, payload[:-8], root)
    assert not verify_boundary(JOB, 1, WireDtype.F32, 2, payload + bytes(8), root)


def test_malformed_bytes_are_false_even_when_they_hash_right() -> None:
    negative_zero = b"\x00\x00\x00\x80"
    tree = BoundaryTree(JOB, 1, WireDtype.F32, 1)
    tree.append(negative_zero)
    assert not verify_boundary(JOB, 1, WireDtype.F32, 1, negative_zero, tree.root())
    nan = b"\x00\x00\xc0\x7f"
    tree = BoundaryTree(JOB, 1, WireDtype.F32, 1)
    tree.append(nan)
    assert not verify_boundary(JOB, 1, WireDtype.F32, 1, nan, tree.root())
    assert not verify_boundary(JOB, 1, WireDtype.F32, 1, b"abc", tree.root())


def test_an_empty_boundary_has_a_root() -> None:
    tree = BoundaryTree(JOB, 0, WireDtype.I32, 1)
    assert tree.root() == boundary_root(JOB, 0, [])
    assert verify_boundary(JOB, 0, WireDtype.I32, 1, b"", tree.root())
    with pytest.raises(IndexError):
        tree.chunk(0, 1)


@pytest.mark.parametrize("payload", [b"", b"abc", bytes(9)])
def test_appending_partial_rows_is_refused_and_changes_nothing(payload: bytes) -> None:
    tree = BoundaryTree(JOB, 1, WireDtype.F32, 2)
    tree.append(bytes(8))
    before = tree.root()
    with pytest.raises(ProtocolError) as caught:
        tree.append(payload)
    assert caught.value.code == "bad-length"
    assert tree.root() == before


@given(h32, h32)
def test_the_salt_hides_the_commit(digest: bytes, salt: bytes) -> None:
    assert hop_leaf(digest, salt) != hop_leaf(digest, keccak(salt))


def test_integers_out_of_range_are_protocol_errors() -> None:
    with pytest.raises(ProtocolError):
        job_id(JOB, 1 << 64)
    with pytest.raises(ProtocolError):
        BoundaryTree(JOB, 1 << 16, WireDtype.F32, 1)
    with pytest.raises(ProtocolError):
        BoundaryTree(JOB[:31], 1, WireDtype.F32, 1)
    with pytest.raises(ProtocolError):
        BoundaryTree(JOB, 1, WireDtype.F32, 0)
