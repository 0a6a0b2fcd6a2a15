"""`efedllm dispute` on files: what is proof, what is none, and what is said before anything is sent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from efedllm.chain.disputes import EvidenceFolder
from efedllm.commitments.equivocation import Equivocation
from efedllm.commitments.messages import SignedCommit
from efedllm_client.cli.main import main
from tests.client.test_faults import ADDRESSES, SIGNERS, TRUE, record
from tests.client.toy_node import DOMAIN


def said(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, dict[str, Any]]:
    with pytest.raises(SystemExit) as caught:
        main([*argv, "--json"])
    return caught.value.code, json.loads(capsys.readouterr().out)


@pytest.fixture
def proof() -> Equivocation:
    first = record(("", ""), TRUE, TRUE).commits[0]
    assert first is not None
    other = replace(first.commit, epoch=2, in_root=bytes(32))
    return Equivocation(DOMAIN, ADDRESSES[0], first, SignedCommit(other, SIGNERS[0].sign(other.digest(DOMAIN))))


def test_a_file_of_evidence_is_described(
    proof: Equivocation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = EvidenceFolder(tmp_path).keep(proof)
    code, shown = said(["dispute", "check", str(path)], capsys)
    assert code == 0
    assert shown == {
        "proof": True,
        "node": ADDRESSES[0],
        "job_id": "0x" + proof.job_id.hex(),
        "hop": 0,
        "signers": [SIGNERS[0].address],
        "differ_in": ["in_root", "epoch"],
        "chain_id": DOMAIN.chain_id,
        "commitment_log": DOMAIN.contract,
    }
    with pytest.raises(SystemExit) as caught:
        main(["dispute", "check", str(path)])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert SIGNERS[0].address in text
    assert "in_root, epoch" in text


def test_what_is_no_proof_is_told_before_anything_is_sent(
    proof: Equivocation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = proof.to_json()
    unsigned = SignedCommit(proof.second.commit, bytes(65)).to_json()
    cases: list[tuple[str, str]] = [
        (json.dumps(document | {"commits": [document["commits"][0]] * 2}), "no-equivocation"),
        (json.dumps(document | {"commits": [document["commits"][0], unsigned]}), "bad-signature"),
        (json.dumps(document | {"kind": "rumour"}), "bad-evidence"),
        (json.dumps(document | {"more": 1}), "bad-evidence"),
        ("[" * 50_000, "bad-evidence"),
        ("", "bad-evidence"),
    ]
    path = tmp_path / "evidence.json"
    for text, code in cases:
        path.write_text(text)
        for words in (["check", str(path)], ["equivocation", "--evidence", str(path)]):
            exit_code, shown = said(["dispute", *words], capsys)
            assert (exit_code, shown["error"]["code"]) == (1, code), text[:80]
            assert shown["error"]["message"]
            assert shown["error"]["hint"] or code == "bad-signature"
    exit_code, shown = said(["dispute", "check", str(tmp_path / "absent")], capsys)
    assert (exit_code, shown["error"]["code"]) == (1, "bad-evidence")
