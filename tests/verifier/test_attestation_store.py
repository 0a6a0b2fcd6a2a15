"""Attestations survive: stored once, with the salt, before anything is sent."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from efedllm.commitments.hashing import keccak
from efedllm.errors import ConfigError
from efedllm_verifier.app import locked
from efedllm_verifier.attestation import NodeVerdict, canonical_json, commitment, prepare, write_report
from efedllm_verifier.store import AttestationStore

A, B = "0x" + "Aa" * 20, "0x" + "0B" * 20
COMMITTEE, ME = "0x" + "33" * 20, "0x" + "44" * 20


def verdict(node: str, value: int = 10) -> NodeVerdict:
    return NodeVerdict(node, value, keccak(node.encode()), keccak(b"tap" + node.encode()))


def test_nodes_are_in_ascending_order_with_their_verdicts() -> None:
    attestation = prepare(7, [verdict(A, 1), verdict(B, 2)], bytes(32))
    assert attestation.nodes == (B, A)
    assert attestation.verdicts == (2, 1)
    assert attestation.evidence == (keccak(B.encode()), keccak(A.encode()))
    assert attestation.taps == (keccak(b"tap" + B.encode()), keccak(b"tap" + A.encode()))


def test_every_attestation_has_its_own_salt() -> None:
    assert prepare(7, [verdict(A)]).salt != prepare(7, [verdict(A)]).salt


def test_the_commitment_is_the_contracts_encoding() -> None:
    attestation = prepare(7, [verdict(A, 1), verdict(B, 2)], b"\x05" * 32)
    # As Solidity's abi.encode writes it: static words, offsets, then the four arrays.
    taps, evidence = list(attestation.taps), list(attestation.evidence)
    expected = encode(
        ["uint256", "address", "uint256", "address", "uint256[]", "uint256[]", "bytes32[]", "bytes32[]", "bytes32"],
        [1337, COMMITTEE, 7, ME, [int(B, 16), int(A, 16)], [2, 1], taps, evidence, b"\x05" * 32],
    )
    assert commitment(attestation, 1337, COMMITTEE, ME) == keccak(expected)


def test_a_commitment_is_bound_to_everything() -> None:
    base = prepare(7, [verdict(A)], bytes(32))
    untapped = replace(verdict(A), tap=bytes(32))
    hashes = {
        commitment(base, 1337, COMMITTEE, ME),
        commitment(base, 1, COMMITTEE, ME),
        commitment(base, 1337, ME, ME),
        commitment(base, 1337, COMMITTEE, A),
        commitment(prepare(8, [verdict(A)], bytes(32)), 1337, COMMITTEE, ME),
        commitment(prepare(7, [verdict(A, 11)], bytes(32)), 1337, COMMITTEE, ME),
        commitment(prepare(7, [verdict(A)], b"\x01" * 32), 1337, COMMITTEE, ME),
        commitment(prepare(7, [untapped], bytes(32)), 1337, COMMITTEE, ME),
    }
    assert len(hashes) == 8


def test_the_report_hash_is_of_the_bytes_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "7" / f"{A}.json"
    evidence = write_report(path, {"b": b"\x01", "a": [1.5, float("inf")], "c": {"y": None, "x": "é"}})
    data = path.read_bytes()
    assert keccak(data) == evidence
    assert data == rb'{"a":[1.5,"inf"],"b":"0x01","c":{"x":"\u00e9","y":null}}'
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@given(st.dictionaries(st.text(), st.floats() | st.integers() | st.text() | st.none()))
def test_any_report_is_valid_json(report: dict[str, object]) -> None:
    assert json.loads(canonical_json(report)).keys() == report.keys()


async def test_the_first_attestation_of_an_epoch_stays(tmp_path: Path) -> None:
    store = await AttestationStore.open(tmp_path / "db")
    first = await store.put_attestation(prepare(7, [verdict(A)]))
    again = await store.put_attestation(prepare(7, [verdict(B)]))
    await store.close()
    assert again == first
    reopened = await AttestationStore.open(tmp_path / "db")
    assert await reopened.attestation(7) == first
    assert await reopened.attestation(8) is None
    await reopened.close()


async def test_verdicts_and_abstentions_are_kept_apart_and_first_wins(tmp_path: Path) -> None:
    store = await AttestationStore.open(tmp_path / "db")
    await store.put_verdict(7, verdict(A, 20), tmp_path / "report")
    await store.put_abstention(7, A, "too late")
    await store.put_abstention(7, B, "no weights")
    await store.put_verdict(7, verdict(B, 20), tmp_path / "report")
    assert await store.verdicts(7) == ([verdict(A, 20)], {B: "no weights"})
    assert await store.verdicts(6) == ([], {})
    await store.close()


async def test_history_shows_what_was_sent(tmp_path: Path) -> None:
    store = await AttestationStore.open(tmp_path / "db")
    for epoch in (3, 4):
        await store.put_attestation(prepare(epoch, [verdict(A, epoch)]))
    await store.note_commit(3, "0x01")
    await store.note_reveal(3, "0x02")
    assert await store.history() == [
        {"epoch": 4, "verdicts": {A: 4}, "commit_tx": None, "reveal_tx": None},
        {"epoch": 3, "verdicts": {A: 3}, "commit_tx": "0x01", "reveal_tx": "0x02"},
    ]
    await store.close()


def test_the_salt_survives_a_kill_right_after_it_was_stored(tmp_path: Path) -> None:
    program = """
import asyncio, os, signal, sys
from pathlib import Path
from efedllm_verifier.attestation import NodeVerdict, prepare
from efedllm_verifier.store import AttestationStore

async def main():
    store = await AttestationStore.open(Path(sys.argv[1]))
    kept = await store.put_attestation(prepare(7, [NodeVerdict("0x" + "Aa" * 20, 10, bytes(32))]))
    print(kept.salt.hex(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "db")], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr

    async def stored() -> bytes:
        store = await AttestationStore.open(tmp_path / "db")
        attestation = await store.attestation(7)
        await store.close()
        assert attestation is not None
        return attestation.salt

    import asyncio

    assert asyncio.run(stored()).hex() == done.stdout.strip()


def test_one_home_serves_one_verifier(tmp_path: Path) -> None:
    with locked(tmp_path / "home"):
        with pytest.raises(ConfigError) as caught, locked(tmp_path / "home"):
            pass
        assert caught.value.code == "home-locked"
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path / "home"):
        pass
