"""Every lie in a message or a commitment meets the check that is there for it."""

from __future__ import annotations

import pytest

from efedllm_bench.attacks.lab import Lab
from efedllm_bench.attacks.lies.messages import MESSAGE_ATTACKS

# Name of the lie: the code that its judge must name.
CODES = {
    "prompt_edit_committed": "wrong-prompt",
    "prompt_drop": "wrong-prompt",
    "system_inject_committed": "wrong-length",
    "tokens_rewritten": "tokens-hash",
    "lazy_copy_leaf": "commit-signature",
    "lazy_copy_commit": "wrong-shard",
    "lazy_copy_root": "other-root",
    "stale_commit": "foreign-job",
    "stale_rows": "withheld",
    "equivocation": "slashed",
    "two_specs": "wrong-spec",
    "second_spec_committed": "wrong-token",
    "spec_for_each_hop": "commit-mismatch",
    "sender_lies": "sender-lied",
    "receiver_lies": "receiver-lied",
    "bad_envelope": "unsigned-input",
    "commit_omission": "missing-commit",
    "late_commit": "wrong-epoch",
    "nonfinite_bytes": "bad-output-bytes",
    "minus_zero": "bad-output-bytes",
    "wrong_endianness": "bad-output-bytes",
    "dtype_lie": "foreign-job",
    "length_lie": "wrong-length",
    "half_rows": "bad-length",
    "second_preimage": "other-root",
    "odd_leaf": "other-root",
    "verifier_drift": "abstains",
    "other_chain": "commit-signature",
    "malleable_signature": "bad-signature",
    "resold_job": "foreign-job",
}
# In the exact profile no wire but float32 is allowed, which is checked first.
EXACT_CODES = CODES | {"dtype_lie": "wrong-wire"}
LIES = {item.name: item for item in MESSAGE_ATTACKS}


@pytest.mark.parametrize("name", CODES)
def test_the_judge_names_the_lie(lab: Lab, name: str) -> None:
    assert LIES[name].run(lab, lab.jobs[1]) == (EXACT_CODES if lab.profile == "exact" else CODES)[name]


def test_every_lie_of_the_catalog_is_tried() -> None:
    assert [item.name for item in MESSAGE_ATTACKS] == list(CODES)


def test_the_bench_expects_the_same_codes() -> None:
    assert {item.name: item.expected("float") for item in MESSAGE_ATTACKS} == CODES
    assert {item.name: item.expected("exact") for item in MESSAGE_ATTACKS} == EXACT_CODES
