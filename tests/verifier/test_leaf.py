"""Reading batches, and everything a leaf can get wrong without any tensor."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from efedllm.chain.types import SessionInfo
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.leaves import batch_root
from efedllm.commitments.messages import Domain, JobSpec, SessionKey, ids_hash
from efedllm.commitments.signing import Signer
from efedllm.errors import ProtocolError
from efedllm.sampling.float import SamplingSpec
from efedllm_verifier.leaf import Leaf, Registration, check_leaf, parse_batch
from efedllm_verifier.leaf_audit import LeafAudit
from efedllm_verifier.node_directory import NodeDirectory
from efedllm_verifier.statistic import UNCALIBRATED, Outcome
from tests.verifier.audit_lab import DOMAIN, Trace, job_spec
from tests.verifier.served_node import Job

ESCROW = (1337, "0x" + "22" * 20)
EPOCH, SEQ, HIDDEN, LAYERS = 9, 4, 4, 8
PROMPT = (5, 6, 7)
EMITTED = (8, 9)
RANGES = ((0, 4), (4, 8))
SIGNERS = tuple(Signer(keccak(bytes([i]))) for i in range(2))
CLIENT = Signer(keccak(b"client"))
NODES = ("0x" + "aa" * 20, "0x" + "bb" * 20)
SHARDS = (keccak(b"shard0"), keccak(b"shard1"))
MODEL = keccak(b"model")


def session() -> SessionKey:
    return SessionKey(CLIENT.address, CLIENT.address, MODEL, 0, 2**39, 10**9, NODES, (5000, 5000))


def a_spec(**more: Any) -> JobSpec:
    spec = job_spec(PROMPT, 8, WireDtype.F32, SamplingSpec(0, 0, 1_000_000, bytes(32)))
    return replace(spec, session_id=session().session_id(*ESCROW), **more)


def a_job(**more: Any) -> Job:
    tokens = len(PROMPT) + len(EMITTED) - 1
    rows = np.arange(tokens * HIDDEN, dtype="<f4").tobytes()
    ids = np.asarray([*PROMPT, *EMITTED[:-1]], dtype="<i4").tobytes()
    job = Job(
        DOMAIN, session(), CLIENT, a_spec(), Trace((ids, rows, rows), EMITTED), RANGES, SIGNERS, SHARDS, HIDDEN, EPOCH
    )
    return replace(job, **more)


def registration(hop: int) -> Registration:
    lo, hi = RANGES[hop]
    signers = frozenset({SIGNERS[hop].address})
    return Registration(session().nodes[hop], signers, MODEL, lo, hi, SHARDS[hop], LAYERS, HIDDEN)


def read(item: dict[str, Any], domain: Domain = DOMAIN) -> Leaf:
    _, leaves = parse_batch({"leaves": [item]}, domain, session().nodes[0], EPOCH, SEQ)
    return leaves[0]


def fault_of(job: Job, hop: int, edit: Callable[[dict[str, Any]], None] | None = None, **registered: Any) -> str:
    item = job.leaf_json(hop, bytes(32))
    if edit is not None:
        edit(item)
    fault = check_leaf(read(item), EPOCH, replace(registration(hop), **registered), DOMAIN, ESCROW)
    return "" if fault is None else fault.code


@pytest.mark.parametrize("hop", [0, 1])
def test_an_honest_leaf_has_no_fault(hop: int) -> None:
    assert fault_of(a_job(), hop) == ""


def test_the_profile_is_the_registered_one() -> None:
    assert fault_of(a_job(), 0, profile=1) == "wrong-shard"


def test_a_float_hop_has_no_taps_to_commit_to() -> None:
    job = a_job()
    signed = replace(job.commit(0), aux_root=keccak(b"taps"))
    item = job.leaf_json(0, bytes(32))
    item["commit"] = signed.to_json()
    item["signature"] = "0x" + SIGNERS[0].sign(signed.digest(DOMAIN)).hex()
    fault = check_leaf(read(item), EPOCH, registration(0), DOMAIN, ESCROW)
    assert fault is not None
    assert fault.code == "wrong-aux"


def test_an_exact_hop_that_rounded_its_rows_is_a_fault() -> None:
    job = a_job()
    commit = replace(job.commit(0), profile=1)
    for wire, code in ((WireDtype.F32, ""), (WireDtype.BF16, "wrong-wire")):
        spec = replace(job.spec, wire_dtype=int(wire))
        signed = replace(commit, wire_dtype=int(wire), job_id=spec.job_id)
        item = job.leaf_json(0, bytes(32))
        item["commit"] = signed.to_json()
        item["signature"] = "0x" + SIGNERS[0].sign(signed.digest(DOMAIN)).hex()
        item["job"]["job_spec"] = spec.to_json()
        item["job"]["spec_signature"] = "0x" + job.client.sign(spec.digest(DOMAIN)).hex()
        fault = check_leaf(read(item), EPOCH, replace(registration(0), profile=1), DOMAIN, ESCROW)
        assert ("" if fault is None else fault.code) == code


def test_the_root_is_recomputed_and_binds_node_epoch_and_number() -> None:
    item = a_job().leaf_json(0, bytes(32))
    node = session().nodes[0]
    root, leaves = parse_batch({"root": "0x00", "count": 7, "leaves": [item]}, DOMAIN, node, EPOCH, SEQ)
    assert root == batch_root(node, EPOCH, SEQ, [leaves[0].hash])
    assert root != parse_batch({"leaves": [item]}, DOMAIN, node, EPOCH + 1, SEQ)[0]
    assert root != parse_batch({"leaves": [item]}, DOMAIN, session().nodes[1], EPOCH, SEQ)[0]
    assert root != parse_batch({"leaves": [{**item, "salt": "0x" + "01" * 32}]}, DOMAIN, node, EPOCH, SEQ)[0]


@pytest.mark.parametrize("value", [{}, {"leaves": None}, {"leaves": ["x"]}, {"leaves": [{}]}])
def test_a_batch_without_commits_has_no_root(value: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        parse_batch(value, DOMAIN, session().nodes[0], EPOCH, SEQ)


@pytest.mark.parametrize("key", ["signature", "job"])
def test_the_rest_of_a_leaf_may_be_unreadable_without_hiding_the_batch(key: str) -> None:
    assert fault_of(a_job(), 0, lambda item: item.pop(key)) == "unreadable-leaf"


@pytest.mark.parametrize("ids", [list(EMITTED), base64.b64encode(np.asarray(EMITTED, "<i4").tobytes()).decode()])
def test_ids_come_as_a_list_or_in_base64(ids: object) -> None:
    item = a_job().leaf_json(1, bytes(32)) | {"emitted": ids}
    assert read(item).emitted == EMITTED


@pytest.mark.parametrize("ids", ["!", "AAA=", [1.5], [True], {}])
def test_ids_in_another_form_are_a_fault(ids: object) -> None:
    assert fault_of(a_job(), 1, lambda item: item.update(emitted=ids)) == "unreadable-leaf"


def test_a_commit_by_another_key_is_a_fault() -> None:
    stranger = Signer(keccak(b"stranger"))
    assert fault_of(replace(a_job(), signers=(stranger, SIGNERS[1])), 0) == "commit-signature"
    assert fault_of(a_job(), 0, lambda item: item.update(signature="0x" + "00" * 65)) == "commit-signature"


def test_a_commit_for_another_chain_is_a_fault() -> None:
    elsewhere = replace(a_job(), domain=Domain(1, DOMAIN.contract))
    item = elsewhere.leaf_json(0, bytes(32))
    fault = check_leaf(read(item), EPOCH, registration(0), DOMAIN, ESCROW)
    assert fault is not None
    assert fault.code == "commit-signature"


@pytest.mark.parametrize(
    "change",
    [{"lo": 1}, {"hi": 5}, {"model_id": keccak(b"other")}, {"shard_root": keccak(b"other")}],
    ids=["lo", "hi", "model", "shard"],
)
def test_a_commit_for_another_shard_than_registered_is_a_fault(change: dict[str, Any]) -> None:
    assert fault_of(a_job(), 0, **change) == "wrong-shard"


@pytest.mark.parametrize(
    ("epoch", "code"), [(EPOCH, ""), (EPOCH - 1, ""), (EPOCH - 2, "wrong-epoch"), (EPOCH + 1, "wrong-epoch")]
)
def test_a_commit_may_be_one_epoch_older_than_its_batch(epoch: int, code: str) -> None:
    assert fault_of(a_job(epoch=epoch), 0) == code


def test_a_job_nobody_signed_is_a_fault() -> None:
    assert fault_of(a_job(client=Signer(keccak(b"thief"))), 0) == "job-signature"


def test_a_job_of_another_session_is_a_fault() -> None:
    assert fault_of(a_job(spec=replace(a_spec(), session_id=keccak(b"free"))), 0) == "foreign-job"


@pytest.mark.parametrize("hop", [0, 1])
@pytest.mark.parametrize(
    "change",
    [{"seed": keccak(b"other")}, {"temperature_milli": 700}, {"max_new_tokens": 9}, {"prompt_hash": keccak(b"other")}],
    ids=["seed", "temperature", "length", "prompt"],
)
def test_another_spec_of_the_same_job_is_a_fault_and_no_slash(hop: int, change: dict[str, Any]) -> None:
    job, other = a_job(), a_spec(**change)
    assert other.job_id == job.spec.job_id
    item = job.leaf_json(hop, bytes(32))
    item["job"] |= {
        "job_spec": other.to_json(),
        "spec_signature": "0x" + CLIENT.sign(other.digest(DOMAIN)).hex(),
    }
    fault = check_leaf(read(item), EPOCH, registration(hop), DOMAIN, ESCROW)
    assert fault is not None
    assert (fault.code, fault.outcome) == ("wrong-spec", Outcome.FAIL)


def test_a_hop_of_somebody_else_is_a_fault() -> None:
    swapped = replace(session(), nodes=session().nodes[::-1])
    spec = replace(a_spec(), session_id=swapped.session_id(*ESCROW))
    assert fault_of(a_job(key=swapped, spec=spec), 0) == "foreign-job"


def test_the_first_layers_must_be_the_first_hop() -> None:
    assert fault_of(a_job(layers=((1, 4), (4, 8))), 0, lo=1) == "wrong-shard"
    assert fault_of(a_job(layers=((0, 4), (4, 7))), 1, hi=7) == "wrong-shard"


def test_a_wire_dtype_the_client_did_not_sign_is_a_fault() -> None:
    job = a_job()
    item = job.leaf_json(0, bytes(32))
    other = replace(job.commit(0), wire_dtype=2)
    item["commit"] = other.to_json()
    item["signature"] = "0x" + SIGNERS[0].sign(other.digest(DOMAIN)).hex()
    fault = check_leaf(read(item), EPOCH, registration(0), DOMAIN, ESCROW)
    assert fault is not None
    assert fault.code == "foreign-job"


def test_more_positions_than_the_job_allows_are_a_fault() -> None:
    assert fault_of(a_job(spec=a_spec(max_new_tokens=1)), 0) == "wrong-length"


@pytest.mark.parametrize(("positions", "code"), [(4, ""), (3, "wrong-length"), (5, "wrong-length")])
@pytest.mark.parametrize("hop", [0, 1])
def test_a_text_is_embedded_whole(hop: int, positions: int, code: str) -> None:
    ids = np.arange(positions, dtype="<i4")
    rows = np.arange(positions * HIDDEN, dtype="<f4").tobytes()
    spec = a_spec(max_new_tokens=0, prompt_tokens=4, prompt_hash=ids_hash(np.arange(4)))
    assert fault_of(a_job(spec=spec, trace=Trace((ids.tobytes(), rows, rows), ())), hop) == code


def test_tokens_other_than_committed_are_severe() -> None:
    item = a_job().leaf_json(1, bytes(32)) | {"emitted": [8, 10]}
    fault = check_leaf(read(item), EPOCH, registration(1), DOMAIN, ESCROW)
    assert fault is not None
    assert (fault.code, fault.outcome) == ("tokens-hash", Outcome.SEVERE)


def test_the_last_hop_must_show_its_tokens() -> None:
    assert fault_of(a_job(), 1, lambda item: item.update(emitted=None)) == "tokens-hash"


@pytest.mark.parametrize(
    ("emitted", "code"), [((8, 9), ""), ((8,), ""), ((), "wrong-length"), ((8, 9, 1), "wrong-length")]
)
def test_the_number_of_tokens_fits_the_positions(emitted: tuple[int, ...], code: str) -> None:
    job = a_job()
    assert fault_of(replace(job, trace=replace(job.trace, emitted=emitted)), 1) == code


def test_going_on_after_the_end_token_is_a_fault() -> None:
    assert fault_of(a_job(spec=a_spec(eos_token=EMITTED[1])), 1) == ""
    assert fault_of(a_job(spec=a_spec(eos_token=EMITTED[0])), 1) == "ran-past-eos"


def test_only_the_last_hop_hashes_tokens() -> None:
    job = a_job()
    item = job.leaf_json(0, bytes(32))
    other = replace(job.commit(0), tokens_hash=ids_hash(EMITTED))
    item["commit"] = other.to_json()
    item["signature"] = "0x" + SIGNERS[0].sign(other.digest(DOMAIN)).hex()
    fault = check_leaf(read(item), EPOCH, registration(0), DOMAIN, ESCROW)
    assert fault is not None
    assert fault.code == "tokens-hash"
    assert job.commit(0).tokens_hash == ZERO32


@pytest.mark.parametrize("name", ["prompt", "emitted"])
@pytest.mark.parametrize("number", [1 << 31, 1 << 70, -1])
def test_ids_that_no_array_holds_make_the_leaf_unreadable(name: str, number: int) -> None:
    """An audit that breaks on them would be an audit escaped."""
    assert fault_of(a_job(), 0, lambda item: item.update({name: [5, number]})) == "unreadable-leaf"


async def test_more_positions_than_the_model_has_are_refused_before_anything_is_fetched() -> None:
    """What a node commits to bounds what it may send us, and a client in league signs any length."""

    class NoSource:
        async def boundary(self, *_args: Any) -> bytes:
            raise AssertionError("fetched")

    class OpenSessions:
        efl_domain, escrow_domain = DOMAIN, ESCROW

        async def session(self, session_id: bytes) -> SessionInfo:
            return SessionInfo(session_id, 0, 0, 0, 0, 1, False)

    job = a_job(spec=a_spec(max_new_tokens=2**31))
    signed = replace(job.commit(0), tokens=2**31)
    item = job.leaf_json(0, bytes(32))
    item["commit"] = signed.to_json()
    item["signature"] = "0x" + SIGNERS[0].sign(signed.digest(DOMAIN)).hex()
    executor: Any = SimpleNamespace(max_positions=64)
    chain: Any = OpenSessions()
    source: Any = NoSource()
    engines: Any = None
    audit = LeafAudit(chain, source, engines, NodeDirectory({}), registration(0), executor, UNCALIBRATED, EPOCH)
    result = await audit.check(read(item))
    assert result.fault is not None
    assert (result.fault.code, result.bytes_fetched) == ("context-exceeded", 0)
