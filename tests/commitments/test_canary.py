"""Salt, consent and fault digest of planted canaries, against their definitions and eth_account."""

from __future__ import annotations

import struct

import pytest
from eth_account.messages import encode_typed_data
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.commitments.canary import (
    Canary,
    canary_place,
    canary_salt,
    fault_digest,
    fingerprint,
    sample_ppm,
)
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.leaves import hop_leaf
from efedllm.commitments.signing import Signer, recover
from efedllm.errors import ProtocolError
from efedllm_verifier.lot import is_sampled
from tests.commitments.commitment_strategies import address, h32, sig65, uint


@settings(max_examples=40)
@given(h32, uint(16), uint(64), address)
def test_the_consent_is_typed_data(job: bytes, hop: int, chain_id: int, contract: str) -> None:
    message = Canary(job, hop)
    typed = encode_typed_data(
        {"name": "EFL", "version": "1", "chainId": chain_id, "verifyingContract": contract},
        {"Canary": [{"name": "jobId", "type": "bytes32"}, {"name": "hop", "type": "uint16"}]},
        {"jobId": job, "hop": hop},
    )
    digest = message.digest(Domain(chain_id, contract))
    assert digest == keccak(b"\x19" + typed.version + typed.header + typed.body)
    signer = Signer(keccak(b"session"))
    assert recover(digest, signer.sign(digest)) == signer.address
    assert Canary.from_json(message.to_json()) == message


@given(h32, uint(16), sig65, h32)
def test_the_salt_is_the_one_written_down(job: bytes, hop: int, consent: bytes, nonce: bytes) -> None:
    tag = b"EFL.canary.1" + bytes(4)
    assert canary_salt(job, hop, consent, nonce) == keccak(
        b"\x00" + tag + job + struct.pack(">H", hop) + keccak(consent) + nonce
    )


@given(h32, uint(16), sig65, h32, st.integers(0, 31), st.integers(0, 64))
def test_the_salt_binds_every_part(job: bytes, hop: int, consent: bytes, nonce: bytes, at: int, place: int) -> None:
    def flipped(data: bytes, i: int) -> bytes:
        return data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]

    base = canary_salt(job, hop, consent, nonce)
    others = {
        canary_salt(flipped(job, at), hop, consent, nonce),
        canary_salt(job, hop ^ 1, consent, nonce),
        canary_salt(job, hop, flipped(consent, place), nonce),
        canary_salt(job, hop, consent, flipped(nonce, at)),
    }
    assert len(others) == 4
    assert base not in others
    assert hop_leaf(job, base) not in {hop_leaf(job, other) for other in others}


@pytest.mark.parametrize(("consent", "code"), [(bytes(64), "bad-signature"), (bytes(66), "bad-signature")])
def test_a_consent_of_another_length(consent: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        canary_salt(bytes(32), 0, consent, bytes(32))
    assert caught.value.code == code
    with pytest.raises(ProtocolError):
        canary_salt(bytes(32), 1 << 16, bytes(65), bytes(32))
    with pytest.raises(ProtocolError):
        canary_salt(bytes(32), 0, bytes(65), bytes(31))


@given(sig65, h32, st.integers(1, 5000))
def test_it_goes_wrong_at_a_position_of_the_job(consent: bytes, nonce: bytes, positions: int) -> None:
    place = canary_place(consent, nonce, positions)
    assert place == canary_place(consent, nonce, positions)
    assert place.position < positions
    assert (place.position == 0) == (positions == 1)


def test_positions_spread_over_the_job() -> None:
    places = {canary_place(bytes(65), keccak(bytes([i])), 20).position for i in range(200)}
    assert places == set(range(1, 20))


@given(h32, st.lists(h32, min_size=1, max_size=6))
def test_the_fault_digest_is_over_a_set(seed: bytes, leaves: list[bytes]) -> None:
    tag = b"EFL.fault.node.1"
    unique = sorted(set(leaves))
    wanted = keccak(b"\x02" + tag + seed + struct.pack(">I", len(unique)) + b"".join(unique))
    assert fault_digest(seed, leaves) == wanted
    assert fault_digest(seed, reversed([*leaves, *leaves])) == wanted
    assert fault_digest(seed, unique[1:]) != wanted
    assert fault_digest(keccak(seed), leaves) != wanted
    assert fingerprint(wanted) == int.from_bytes(wanted) & 0xFFFFFFFF


def test_no_failure_has_no_digest() -> None:
    assert fault_digest(bytes(32), []) == ZERO32
    assert fingerprint(ZERO32) == 0


@given(h32, h32, st.integers(0, 1_000_000))
def test_the_sample_number_is_the_predicate(seed: bytes, leaf: bytes, rate: int) -> None:
    number = sample_ppm(seed, leaf)
    drawn = int.from_bytes(keccak(seed + leaf))
    assert 0 <= number < 1_000_000
    assert (number < rate) == is_sampled(seed, leaf, rate) == (drawn * 10**6 < rate << 256)
    # The same from two halves of 128 bits, as a contract of 256-bit words has to compute it.
    high, low = drawn >> 128, drawn & (1 << 128) - 1
    assert number == (high * 10**6 + (low * 10**6 >> 128)) >> 128
