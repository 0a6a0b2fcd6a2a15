"""Tap trees, openings, and what verifiers attest."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.commitments.hashing import ZERO32, keccak, sha256
from efedllm.commitments.merkle import merkle
from efedllm.commitments.taps import TapOpening, TapTree, chosen_taps, tap_digest, tap_positions
from efedllm.errors import ProtocolError

JOB = bytes(range(32))
ROW = 6


def rows(count: int) -> bytes:
    return b"".join(keccak(struct.pack(">I", i))[:ROW] for i in range(count))


def tree(count: int, job: bytes = JOB, hop: int = 2) -> TapTree:
    made = TapTree(job, hop, ROW)
    made.append(rows(count))
    return made


def test_the_root_is_the_one_written_down() -> None:
    tag = b"EFL.tap.1".ljust(16, b"\0")
    bound = tag + JOB + struct.pack(">H", 2)
    taps = rows(3)
    leaves = [keccak(b"\x00" + bound + struct.pack(">I", i) + sha256(taps[i * ROW : (i + 1) * ROW])) for i in range(3)]
    assert tree(3).root() == keccak(b"\x02" + bound + struct.pack(">I", 3) + merkle(leaves))


@given(st.lists(st.integers(0, 5), max_size=6))
def test_how_rows_arrive_does_not_matter(sizes: list[int]) -> None:
    made, data = TapTree(JOB, 2, ROW), rows(sum(sizes))
    at = 0
    for size in sizes:
        made.append(data[at * ROW : (at + size) * ROW])
        at += size
    assert made.length == sum(sizes)
    assert made.root() == tree(sum(sizes)).root()


def test_half_a_row_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        TapTree(JOB, 0, ROW).append(bytes(ROW + 1))
    assert caught.value.code == "bad-length"


@settings(max_examples=40)
@given(st.integers(1, 40), st.data())
def test_an_opening_proves_its_place_and_no_other(count: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, count - 1))
    made = tree(count)
    opening = TapOpening(position, rows(count)[position * ROW : (position + 1) * ROW], made.proof(position))
    root = made.root()
    assert opening.proves(root, JOB, 2, count)
    assert TapOpening.from_json(opening.to_json()) == opening
    other = TapOpening(position, bytes(ROW), opening.proof)
    assert not other.proves(root, JOB, 2, count)
    assert not opening.proves(root, bytes(32), 2, count)
    assert not opening.proves(root, JOB, 3, count)
    assert not opening.proves(root, JOB, 2, count + 1)
    shifted = TapOpening((position + 1) % (count + 1), opening.tap, opening.proof)
    assert not shifted.proves(root, JOB, 2, count)


@pytest.mark.parametrize("value", [{}, {"position": 0, "tap": "00", "proof": []}, {"position": 0, "tap": "0x"}])
def test_malformed_openings(value: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        TapOpening.from_json(value)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.integers(1, 5000))
def test_positions_end_with_the_last(seed: bytes, leaf: bytes, count: int) -> None:
    chosen = tap_positions(seed, leaf, count)
    assert chosen[-1] == count - 1
    assert list(chosen) == sorted(set(chosen))
    assert 1 <= len(chosen) <= 4


def test_positions_follow_the_seed() -> None:
    leaf = keccak(b"leaf")
    assert len({tap_positions(keccak(bytes([i])), leaf, 10_000) for i in range(50)}) == 50


def test_the_digest_covers_leaves_positions_and_values() -> None:
    seed, leaf, data = keccak(b"seed"), keccak(b"leaf"), rows(9)
    base = chosen_taps(seed, leaf, data, ROW)
    position = tap_positions(seed, leaf, 9)[0]
    flipped = bytearray(data)
    flipped[position * ROW] ^= 1
    assert base != chosen_taps(seed, leaf, bytes(flipped), ROW)
    assert base != chosen_taps(keccak(b"another"), leaf, data, ROW)
    assert base != chosen_taps(seed, keccak(b"other leaf"), data, ROW)
    one, two = (leaf, base), (keccak(b"second"), keccak(b"taps"))
    assert tap_digest([one, two]) == tap_digest([two, one])
    assert tap_digest([one]) != tap_digest([one, two])
    assert tap_digest([]) == ZERO32
