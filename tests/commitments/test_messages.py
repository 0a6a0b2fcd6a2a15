"""Signed messages: digests equal to eth_account's and Solidity's, JSON that survives, nothing malformed accepted."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from eth_abi.abi import encode as abi_encode
from eth_account.messages import encode_typed_data
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.commitments.eip712 import Domain, TypedMessage
from efedllm.commitments.evidence import BoundaryEvidence, EnvelopeRecord
from efedllm.commitments.hashing import as_address, keccak
from efedllm.commitments.messages import (
    Envelope,
    HopCommit,
    JobSpec,
    RouteHop,
    SessionKey,
    SignedCommit,
    Voucher,
    escrow_domain,
    ids_bytes,
    ids_hash,
)
from efedllm.errors import ProtocolError
from tests.commitments.commitment_strategies import (
    address,
    envelopes,
    h32,
    hellos,
    hop_commits,
    job_specs,
    route_hops,
    session_keys,
    sig65,
    vouchers,
)

any_message = st.one_of(job_specs, hop_commits(), envelopes, hellos, vouchers)
chain_ids = st.integers(1, 2**64)


def reference_digest(message: TypedMessage, domain: Domain) -> bytes:
    values = [getattr(message, field.name) for field in dataclasses.fields(message)]
    document: dict[str, Any] = {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            message.NAME: [{"name": name, "type": kind} for kind, name in message.SOLIDITY],
        },
        "primaryType": message.NAME,
        "domain": {
            "name": domain.name,
            "version": domain.version,
            "chainId": domain.chain_id,
            "verifyingContract": domain.contract,
        },
        "message": {name: value for (_, name), value in zip(message.SOLIDITY, values, strict=True)},
    }
    signable = encode_typed_data(full_message=document)
    return keccak(b"\x19" + signable.version + signable.header + signable.body)


@settings(max_examples=200)
@given(any_message, chain_ids, address)
def test_digests_equal_eth_accounts(message: TypedMessage, chain_id: int, contract: str) -> None:
    if isinstance(message, Voucher):
        assert message.digest(chain_id, contract) == reference_digest(message, escrow_domain(chain_id, contract))
    else:
        domain = Domain(chain_id, contract)
        assert message.digest(domain) == reference_digest(message, domain)  # type: ignore[attr-defined]


@given(session_keys(), chain_ids, address)
def test_session_id_equals_soliditys(key: SessionKey, chain_id: int, escrow: str) -> None:
    struct = "(address,address,bytes32,uint64,uint40,uint64,address[],uint16[])"
    fields = (
        key.client,
        key.signer,
        key.model_id,
        key.nonce,
        key.expiry,
        key.max_price_per_ktok,
        key.nodes,
        key.shares,
    )
    encoded = abi_encode(["uint256", "address", struct], [chain_id, escrow, fields])
    assert key.session_id(chain_id, escrow) == keccak(encoded)


@given(st.one_of(any_message, session_keys(), route_hops()))
def test_json_survives(message: Any) -> None:
    text = json.dumps(message.to_json())
    assert type(message).from_json(json.loads(text)) == message


@given(hop_commits(), sig65)
def test_signed_commit_json_survives(commit: HopCommit, signature: bytes) -> None:
    signed = SignedCommit(commit, signature)
    assert SignedCommit.from_json(json.loads(json.dumps(signed.to_json()))) == signed


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("0x" + "00" * 32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.one_of(any_message, session_keys(), route_hops()), st.data())
def test_malformed_json_is_a_protocol_error_and_never_another(message: Any, data: st.DataObject) -> None:
    document = message.to_json()
    key = data.draw(st.sampled_from(sorted(document)))
    change = data.draw(st.sampled_from(["replace", "drop", "add"]))
    if change == "replace":
        document[key] = data.draw(json_values)
    elif change == "drop":
        del document[key]
    else:
        document["extra"] = 1
    try:
        parsed = type(message).from_json(document)
    except ProtocolError:
        return
    if change == "drop":
        assert key == "shard_root"
    assert change != "add"
    assert type(message).from_json(parsed.to_json()) == parsed


@given(st.one_of(st.none(), st.integers(), st.text(), st.lists(st.integers())))
def test_anything_that_is_no_object_is_refused(value: Any) -> None:
    for kind in (JobSpec, HopCommit, Envelope, Voucher, SessionKey, RouteHop, SignedCommit):
        with pytest.raises(ProtocolError):
            kind.from_json(value)


SPEC = JobSpec(bytes(32), 1, bytes(32), 4, 5, 0, 0, 1_000_000, bytes(32), 1)


@pytest.mark.parametrize(
    "change",
    [
        {"job_seq": -1},
        {"job_seq": 1 << 64},
        {"job_seq": True},
        {"job_seq": 1.0},
        {"prompt_tokens": 0},
        {"max_new_tokens": -1},
        {"top_p_ppm": 0},
        {"top_p_ppm": 1_000_001},
        {"wire_dtype": 3},
        {"wire_dtype": 0},
        {"seed": bytes(31)},
        {"seed": "0x" + "00" * 32},
        {"eos_token": 1 << 32},
    ],
)
def test_job_spec_ranges(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as caught:
        dataclasses.replace(SPEC, **change)
    assert caught.value.code == "bad-message"


A, B = as_address("0x" + "aa" * 20), as_address("0x" + "bb" * 20)
KEY = SessionKey(A, B, bytes(32), 1, 2, 3, (A, B), (5000, 5000))


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": ()},
        {"nodes": (A,)},
        {"nodes": (A, A)},
        {"nodes": "0x" + "aa" * 20},
        {"shares": (5000, 4999)},
        {"shares": (10001, -1)},
        {"shares": (5000, 5000, 0)},
        {"client": "0x" + "zz" * 20},
        {"signer": "0x" + "aa" * 19},
        {"expiry": 1 << 40},
        {"nonce": None},
    ],
)
def test_session_key_ranges(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as caught:
        dataclasses.replace(KEY, **change)
    assert caught.value.code == "bad-message"


def test_a_hop_serves_layers() -> None:
    h = bytes(32)
    with pytest.raises(ProtocolError):
        HopCommit(h, h, 0, 3, 3, 0, 1, 1, h, h, h, h, h, h, h, 1)
    with pytest.raises(ProtocolError):
        HopCommit(h, h, 0, 0, 3, 3, 1, 1, h, h, h, h, h, h, h, 1)
    with pytest.raises(ProtocolError):
        Envelope(h, 1, 0, 0, h, h)


def test_addresses_are_stored_checksummed_and_a_wrong_checksum_is_refused() -> None:
    good = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    for spelling in (good, good.lower(), "0x" + good[2:].upper()):
        assert as_address(spelling) == good
    for bad in (
        good[:-1] + "D",
        good[:-1],
        good + "0",
        "5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0x" + "_" * 40,
        None,
    ):
        with pytest.raises(ProtocolError):
            as_address(bad)
    assert Domain(1, good.lower()) == Domain(1, good)


@pytest.mark.parametrize(
    "text", ["0x" + "0 " * 32, "0X" + "00" * 32, "00" * 32, "0x" + "00" * 31, "0x" + "0g" * 32, "0x" + "00" * 31 + "0"]
)
def test_hex_has_one_spelling(text: str) -> None:
    document = SPEC.to_json()
    document["seed"] = text
    with pytest.raises(ProtocolError):
        JobSpec.from_json(document)


def test_another_chain_or_contract_gives_another_digest() -> None:
    domain = Domain(1, A)
    digests = {
        SPEC.digest(domain),
        SPEC.digest(Domain(2, A)),
        SPEC.digest(Domain(1, B)),
        SPEC.digest(Domain(1, A, "EFL", "2")),
        SPEC.digest(escrow_domain(1, A)),
    }
    assert len(digests) == 5
    assert len({KEY.session_id(1, A), KEY.session_id(2, A), KEY.session_id(1, B)}) == 3


@given(st.lists(st.integers(0, 2**31 - 1), max_size=20))
def test_ids_are_little_endian_int32(ids: list[int]) -> None:
    assert ids_bytes(ids) == b"".join(i.to_bytes(4, "little") for i in ids)
    assert len(ids_hash(ids)) == 32


@pytest.mark.parametrize("ids", [[-1], [1 << 31]])
def test_ids_out_of_range(ids: list[int]) -> None:
    with pytest.raises(ProtocolError):
        ids_bytes(ids)


@given(st.lists(h32, max_size=5), h32, sig65, st.booleans(), st.booleans())
def test_evidence_json_survives(leaves: list[bytes], job: bytes, sig: bytes, sent: bool, acked: bool) -> None:
    envelope = Envelope(job, 2, 0, max(1, len(leaves)), keccak(b"".join(leaves)), bytes(32))
    record = EnvelopeRecord(envelope, sig if sent else None, sig if acked else None)
    evidence = BoundaryEvidence(tuple(leaves), (record,))
    assert BoundaryEvidence.from_json(json.loads(json.dumps(evidence.to_json())), job, 2) == evidence


def test_overlapping_envelopes_are_no_evidence() -> None:
    def record(from_pos: int, n: int) -> EnvelopeRecord:
        return EnvelopeRecord(Envelope(bytes(32), 1, from_pos, n, bytes(32), bytes(32)), None, None)

    assert BoundaryEvidence((), (record(0, 2), record(2, 1), record(9, 1)))
    for pair in ((record(0, 2), record(1, 1)), (record(2, 1), record(0, 1))):
        with pytest.raises(ProtocolError):
            BoundaryEvidence((), pair)
    with pytest.raises(ProtocolError):
        BoundaryEvidence.from_json({"leaves": "0x", "envelopes": []}, bytes(32), 1)
