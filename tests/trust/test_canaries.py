"""Openings of canaries: the contract's hashes are those of efedllm.commitments, and its rules those of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from efedllm.commitments.canary import Canary, canary_salt, fault_digest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from efedllm.chain.reverts import HINTS
from efedllm.commitments import leaves
from efedllm.commitments.hashing import keccak
from efedllm.commitments.messages import HopCommit, SessionKey
from efedllm.commitments.signing import Signer
from efedllm.errors import ChainError, ProtocolError
from efedllm_bench.trust import committee as com
from efedllm_bench.trust.committee import Said
from efedllm_bench.trust.evm import COMMIT, REVEAL, TALLY, Network, address_of
from efedllm_bench.trust.history import Comparison
from efedllm_bench.trust.planted import Planted, Planter, audited, print_of
from efedllm_deploy.profile import Profile
from efedllm_verifier.verdict import Verdict

NODE = address_of("node")
LAYERS = 4


def network(seats: int = 3) -> Network:
    """One node, and `seats` verifiers; everything is audited."""
    profile = Profile.load("local")
    net = Network(profile, LAYERS)
    for who in (NODE, *(address_of(f"v{i}") for i in range(seats))):
        net.stake(who, profile.committee.seat_stake)
    net.register(NODE, LAYERS)
    for i in range(seats):
        net.take_seat(address_of(f"v{i}"))
    return net


@pytest.fixture(scope="module")
def net() -> Network:
    return network()


def h32() -> st.SearchStrategy[bytes]:
    return st.binary(min_size=32, max_size=32)


def uint(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


@st.composite
def commits(draw: Callable[..., Any]) -> HopCommit:
    lo = draw(st.integers(0, 2**16 - 2))
    return HopCommit(
        job_id=draw(h32()),
        spec_hash=draw(h32()),
        hop=draw(uint(16)),
        lo=lo,
        hi=draw(st.integers(lo + 1, 2**16 - 1)),
        profile=draw(st.integers(0, 2)),
        wire_dtype=draw(st.integers(1, 2)),
        tokens=draw(uint(32)),
        model_id=draw(h32()),
        shard_root=draw(h32()),
        in_root=draw(h32()),
        out_root=draw(h32()),
        tokens_hash=draw(h32()),
        aux_root=draw(h32()),
        prev_commit=draw(h32()),
        epoch=draw(uint(64)),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commit=commits(), key=st.binary(min_size=31, max_size=31), nonce=h32())
def test_leaf_and_consent_hash_alike(net: Network, commit: HopCommit, key: bytes, nonce: bytes) -> None:
    domain = net.efl_domain
    canary = Canary(commit.job_id, commit.hop)
    assert bytes(net.call("CanaryRegistry", "consentDigest", commit.job_id, commit.hop)) == canary.digest(domain)
    consent = Signer(b"\x01" + key).sign(canary.digest(domain))
    opening = {"commit": commit, "consent": consent, "nonce": nonce, **_empty(net)}
    ours = leaves.hop_leaf(commit.digest(domain), canary_salt(commit.job_id, commit.hop, consent, nonce))
    assert bytes(net.call("CanaryRegistry", "leafOf", opening)) == ours


def _empty(net: Network) -> dict[str, Any]:
    key = SessionKey(NODE, NODE, net.model_id, 0, 1, 1, (NODE,), (10_000,))
    return {"job_seq": 0, "key": key, "seq": 0, "count": 1, "index": 0, "proof": []}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=h32(), found=st.sets(h32(), min_size=1, max_size=16))
def test_fault_digests_hash_alike(net: Network, seed: bytes, found: set[bytes]) -> None:
    assert bytes(net.call("CanaryRegistry", "faultDigest", seed, sorted(found))) == fault_digest(seed, found)


def test_golden_values() -> None:
    """Fixed bytes, so that no change of both sides at once goes unseen."""
    net = network()
    commit = HopCommit(
        bytes(range(32)), b"\x08" * 32, 1, 2, 5, 1, 2, 77, b"\1" * 32, b"\2" * 32, b"\3" * 32, b"\4" * 32, b"\5" * 32,
        b"\6" * 32, b"\7" * 32, 9,
    )  # fmt: skip
    # The parts that do not depend on where the contracts live.
    salt = canary_salt(commit.job_id, commit.hop, bytes(range(65)), b"\x42" * 32)
    digest = fault_digest(b"\x11" * 32, [b"\x33" * 32, b"\x22" * 32])
    assert commit.struct_hash().hex() == GOLDEN["commit"]
    assert Canary(commit.job_id, commit.hop).struct_hash().hex() == GOLDEN["canary"]
    assert salt.hex() == GOLDEN["salt"]
    assert digest.hex() == GOLDEN["fault"]
    assert leaves.hop_leaf(b"\x0a" * 32, salt).hex() == GOLDEN["leaf"]
    batch = [keccak(bytes([i])) for i in range(5)]
    assert leaves.batch_root(address_of("golden"), 7, 3, batch).hex() == GOLDEN["root"]
    onchain = net.call("CanaryRegistry", "faultDigest", b"\x11" * 32, [b"\x22" * 32, b"\x33" * 32])
    assert bytes(onchain).hex() == GOLDEN["fault"]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
def test_an_opening_made_in_python_is_accepted_whatever_the_size_of_the_batch(count: int) -> None:
    net = network()
    planted = Planter(net, [NODE], LAYERS).plant(NODE, 1, count)
    seed, opened = _opened(net, planted)
    assert net.canary(1, NODE) == print_of(seed, [item.leaf for item in opened]) != 0
    with pytest.raises(ChainError):
        net.open_canaries(NODE, 1, [item.opening for item in opened])


def _opened(net: Network, planted: list[Planted]) -> tuple[bytes, list[Planted]]:
    net.move_to(2, COMMIT)
    seed = net.fix_seed(1)
    due = audited(planted, seed, net.audit_rate(NODE))
    assert len(due) == len(planted)
    net.move_to(2, REVEAL)
    net.open_canaries(NODE, 1, [item.opening for item in due])
    return seed, due


@pytest.mark.parametrize("changed", ["nonce", "consent", "job_seq", "seq", "count", "index", "proof", "commit", "key"])
def test_no_member_of_an_opening_can_be_changed(changed: str) -> None:
    net = network()
    planted = Planter(net, [NODE], LAYERS).plant(NODE, 1, 3)
    net.move_to(2, COMMIT)
    due = audited(planted, net.fix_seed(1), net.audit_rate(NODE))
    net.move_to(2, REVEAL)
    good = due[0].opening
    other: dict[str, Any] = {
        "nonce": keccak(b"other"),
        "consent": Signer(keccak(b"stranger")).sign(Canary(good["commit"].job_id, 0).digest(net.efl_domain)),
        "proof": [keccak(b"other"), *good["proof"][1:]],
        "commit": replace(good["commit"], out_root=keccak(b"right after all")),
        "key": replace(good["key"], signer=NODE),
    }
    value = other[changed] if changed in other else good[changed] ^ 1
    with pytest.raises(ChainError):
        net.open_canaries(NODE, 1, [{**good, changed: value}])
    net.open_canaries(NODE, 1, [good])


@pytest.mark.parametrize(("beside", "burned"), [(False, 0), (True, 1)])
def test_three_verifiers_in_the_contract_forgive_the_canaries_and_nothing_else(beside: bool, burned: int) -> None:
    net = network()
    verifiers = [address_of(f"v{i}") for i in range(3)]
    net.move_to(2, COMMIT)
    planted = Planter(net, [NODE], LAYERS).plant(NODE, 2, 2)
    net.move_to(3, COMMIT)
    seed = net.fix_seed(2)
    due = audited(planted, seed, net.audit_rate(NODE))
    leaf = [item.leaf for item in due]
    found = Said(Verdict(10, 4, True), print_of(seed, [*leaf, keccak(b"real")] if beside else leaf))
    lazy = Said(Verdict(14, 0, False))
    said = {verifiers[0]: found, verifiers[1]: found, verifiers[2]: lazy}
    attested = {v: net.attestation(2, v, {NODE: item}) for v, item in said.items()}
    for v, item in attested.items():
        net.commit(v, item)
    net.move_to(3, REVEAL)
    for v, item in attested.items():
        net.reveal(v, item)
    net.open_canaries(NODE, 2, [item.opening for item in due])
    before = net.stake_of(NODE)
    net.move_to(3, TALLY)
    net.finalize(2, [NODE])
    assert (net.stake_of(NODE) != before) == bool(burned)
    assert net.forgiven(2, NODE) == (0 if beside else 2)
    # Whoever passed unseen is found out either way: that is what the canary is for.
    assert [net.judge(2, v, [NODE]) for v in verifiers] == [com.OK, com.OK, com.DEVIATED]
    assert [net.points(2, v) for v in verifiers] == [14, 14, 0]


def test_a_model_that_forgives_lesser_failures_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def lenient(said: Said, canary: int) -> Said:
        return Said(Verdict(said.verdict.passed, 0, False)) if said.tap == canary else said

    monkeypatch.setattr(com, "forgive", lenient)
    _differs()


def test_a_model_that_judges_by_what_is_left_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    final = com.final

    def forgetful(revealed: Any, drawn: int, canary: int = 0) -> com.Final | None:
        decided = final(revealed, drawn, canary)
        return None if decided is None else replace(decided, found=decided.failed)

    monkeypatch.setattr(com, "final", forgetful)
    _differs()


def test_a_model_that_protects_nobody_from_a_lazy_majority_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    final = com.final

    def blind(revealed: Any, drawn: int, canary: int = 0) -> com.Final | None:
        decided = final(revealed, drawn, canary)
        return decided if decided is None or decided.found else replace(decided, canary=0)

    monkeypatch.setattr(com, "final", blind)
    _differs()


def _differs() -> None:
    with pytest.raises(ProtocolError) as caught:
        Comparison(Profile.load("local"), nodes=5, verifiers=6, seed=b"local").run(60)
    assert caught.value.code == "model-differs"


def test_refusals_say_what_to_do() -> None:
    assert {"AlreadyOpened", "LeafNotSampled", "NoConsent", "UnknownBatch"} <= set(HINTS)


GOLDEN = {
    "commit": "536102e5fa1c597d2eff47c1091ef44b1bdfb8a61d08215225fa2208262c9824",
    "canary": "d0ed6e60919f35bcde8d3917394194487eb7c74cc81c8516e31a6ab89589bd4f",
    "salt": "38c70345d857c248d1afd697b83dc7bc33e7b9246327ac631028c78b6e9004d0",
    "fault": "81fc8d4f2aafeb29c1e10fd293445f940692f9a04b600854d2b25b9aac545fab",
    "leaf": "4b0d249262fa249fbc03a065f803eda081ff1af3ada367c81c97fed5f541831f",
    "root": "d7e8be69e867c34350f66bf18aa0eb4e000cfce53409bf9f4123ee3edf0c7100",
}
