"""Link checks: whole routes pass and every lie is seen."""

from __future__ import annotations

import dataclasses

import pytest

from efedllm.commitments.blame import check_route_commits, token_tree
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import keccak
from efedllm.commitments.messages import HopCommit, SignedCommit, ids_bytes
from tests.commitments.route_fixture import (
    DOMAIN,
    EMITTED,
    FED,
    JOB,
    MODEL,
    PROMPT,
    SIGNERS,
    SPEC,
    T,
    check,
    commitments,
    route,
    sign,
)


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_an_honest_route_has_no_fault(hops: int) -> None:
    assert check([*commitments(hops)]) == []


FIELDS = [f.name for f in dataclasses.fields(HopCommit)]
FREE = {"epoch"}
"""The field no other party of the job can check: the batch binds the epoch."""


def mutate(commit: HopCommit, name: str) -> HopCommit:
    value = getattr(commit, name)
    if name == "lo":
        changed = value + 1
    elif name in ("wire_dtype", "profile"):
        changed = {1: 2, 2: 1, 0: 1}[value]
    elif isinstance(value, int):
        changed = value + 1
    else:
        changed = keccak(value)
    return dataclasses.replace(commit, **{name: changed})


@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize("name", FIELDS)
def test_every_mutation_of_one_commit_is_seen_and_nobody_else_is_blamed(hop: int, name: str) -> None:
    commits: list[SignedCommit | None] = [*commitments(3)]
    original = commits[hop]
    assert original is not None
    commits[hop] = sign(hop, mutate(original.commit, name))
    faults = check(commits)
    guilty = {h for fault in faults for h in fault.guilty}
    assert guilty <= {hop}
    if hop == 2 and (name in FREE or name == "out_root"):
        # The last hop's output has no receiver: only its batch and the re-execution bind these.
        assert faults == []
        return
    # The next hop's prevCommit names the original, whatever was changed.
    assert faults
    own = {"in_root", "out_root", "prev_commit", "tokens"} | FREE
    if name not in own or (name == "tokens" and hop != 1) or (name == "prev_commit" and hop == 0):
        assert guilty == {hop}
    elif hop < 2:
        assert ("prev-commit", hop + 1) in {(f.kind, f.boundary) for f in faults}


def test_the_same_root_with_another_count_is_a_dispute() -> None:
    """A root binds its count, so one of the two lies about it; opening the leaves tells which."""
    commits: list[SignedCommit | None] = [*commitments(3)]
    original = commits[1]
    assert original is not None
    commits[1] = sign(1, dataclasses.replace(original.commit, tokens=T + 1))
    assert {f.boundary for f in check(commits) if f.kind == "boundary-mismatch"} == {1, 2}


@pytest.mark.parametrize("hop", [0, 1, 2])
def test_missing_and_unsigned_commits(hop: int) -> None:
    commits: list[SignedCommit | None] = [*commitments(3)]
    original = commits[hop]
    assert original is not None
    commits[hop] = None
    assert [(f.kind, f.guilty_hop) for f in check(commits)] == [("missing-commit", hop)]
    commits[hop] = SignedCommit(original.commit, SIGNERS[3].sign(original.commit.digest(DOMAIN)))
    assert [(f.kind, f.guilty_hop) for f in check(commits)] == [("bad-signature", None)]


@pytest.mark.parametrize("hop", [0, 1, 2])
def test_a_hop_that_commits_to_another_spec_of_the_job_is_guilty_alone(hop: int) -> None:
    commits: list[SignedCommit | None] = [*commitments(3)]
    original = commits[hop]
    assert original is not None
    other = dataclasses.replace(SPEC, seed=keccak(b"other"))
    assert other.job_id == JOB
    commits[hop] = sign(hop, dataclasses.replace(original.commit, spec_hash=other.digest(DOMAIN)))
    faults = check(commits)
    assert [(f.kind, f.guilty_hop) for f in faults if f.guilty] == [("wrong-spec", hop)]


def test_a_commit_signed_for_another_chain_is_not_signed() -> None:
    commits: list[SignedCommit | None] = [*commitments(2)]
    first = commits[0]
    assert first is not None
    commits[0] = SignedCommit(first.commit, SIGNERS[0].sign(first.commit.digest(Domain(1, DOMAIN.contract))))
    assert [f.kind for f in check(commits)] == ["bad-signature"]


def test_a_wrong_prompt_or_no_output_is_told_apart() -> None:
    commits: list[SignedCommit | None] = [*commitments(2)]
    kwargs = {"domain": DOMAIN, "route": route(2), "model_id": MODEL}
    assert [f.kind for f in check_route_commits(SPEC, [5, 6, 8], EMITTED, commits, **kwargs)] == ["wrong-prompt"]  # type: ignore[arg-type]
    assert [f.kind for f in check_route_commits(SPEC, [5, 6], EMITTED, commits, **kwargs)] == ["wrong-prompt"]  # type: ignore[arg-type]
    assert [f.kind for f in check_route_commits(SPEC, PROMPT, [], commits, **kwargs)] == ["no-output"]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one commit"):
        check_route_commits(SPEC, PROMPT, EMITTED, commits[:1], **kwargs)  # type: ignore[arg-type]


def test_other_output_than_the_client_saw_is_the_last_hops() -> None:
    commits: list[SignedCommit | None] = [*commitments(2)]
    other = [8, 9, 10, 12]
    faults = check_route_commits(SPEC, PROMPT, other, commits, domain=DOMAIN, route=route(2), model_id=MODEL)
    # Only the last, never fed token differs: hop 0's tree is the same.
    assert [(f.kind, f.guilty_hop) for f in faults] == [("tokens-hash", 1)]


def test_input_mismatch_is_only_decided_alone_when_there_is_one_hop() -> None:
    wrong = token_tree(JOB, [4, *FED[1:]]).root()
    for hops, guilty in ((1, 0), (2, None)):
        commits: list[SignedCommit | None] = [*commitments(hops)]
        first = commits[0]
        assert first is not None
        commits[0] = sign(0, dataclasses.replace(first.commit, in_root=wrong))
        found = [f.guilty_hop for f in check(commits) if f.kind == "input-mismatch"]
        assert found == [guilty]


def test_the_token_tree_is_what_hop_0_grows_row_by_row() -> None:
    tree = BoundaryTree(JOB, 0, WireDtype.I32, 1)
    tree.append(ids_bytes(PROMPT))
    for token in EMITTED[:-1]:
        tree.append(ids_bytes([token]))
    assert tree.root() == token_tree(JOB, FED).root()
