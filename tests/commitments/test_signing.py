"""Signatures: recoverable, unique, and equal to what wallets make."""

from __future__ import annotations

import pytest
from eth_keys.datatypes import PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from efedllm.commitments.hashing import keccak
from efedllm.commitments.signing import Signer, check, recover
from efedllm.errors import ProtocolError
from tests.commitments.commitment_strategies import h32

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
keys = st.integers(1, ORDER - 1).map(lambda k: k.to_bytes(32, "big"))


@given(keys, h32)
def test_a_signature_recovers_its_signer(key: bytes, digest: bytes) -> None:
    signer = Signer(key)
    signature = signer.sign(digest)
    assert len(signature) == 65
    assert signature[64] in (27, 28)
    assert int.from_bytes(signature[32:64], "big") <= ORDER // 2
    assert recover(digest, signature) == signer.address
    check(digest, signature, signer.address.lower())


@given(keys, h32)
def test_it_is_the_signature_every_ethereum_library_makes(key: bytes, digest: bytes) -> None:
    reference = PrivateKey(key)
    signature = reference.sign_msg_hash(digest)
    expected = signature.r.to_bytes(32, "big") + signature.s.to_bytes(32, "big") + bytes([signature.v + 27])
    assert Signer(key).sign(digest) == expected
    assert Signer(key).address == reference.public_key.to_checksum_address()


def malleate(signature: bytes) -> bytes:
    """The other valid signature of the same message by the same key."""
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


@given(keys, h32)
def test_the_malleated_signature_is_refused(key: bytes, digest: bytes) -> None:
    signer = Signer(key)
    with pytest.raises(ProtocolError) as caught:
        check(digest, malleate(signer.sign(digest)), signer.address)
    assert caught.value.code == "bad-signature"


@given(keys, h32, st.integers(0, 64), st.integers(1, 255))
def test_any_changed_byte_is_refused(key: bytes, digest: bytes, where: int, flip: int) -> None:
    signer = Signer(key)
    signature = bytearray(signer.sign(digest))
    signature[where] ^= flip
    with pytest.raises(ProtocolError) as caught:
        check(digest, bytes(signature), signer.address)
    assert caught.value.code == "bad-signature"


@given(st.binary(max_size=80))
def test_random_bytes_are_no_signature(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        check(keccak(b""), data, Signer(b"\x01" * 32).address)
    assert caught.value.code == "bad-signature"


@pytest.mark.parametrize("v", [0, 1, 26, 29, 31])
def test_only_27_and_28(v: int) -> None:
    signature = Signer(b"\x01" * 32).sign(bytes(32))
    with pytest.raises(ProtocolError):
        recover(bytes(32), signature[:64] + bytes([v]))


def test_another_signer_and_another_digest_are_refused() -> None:
    alice, bob = Signer(b"\x01" * 32), Signer(b"\x02" * 32)
    signature = alice.sign(bytes(32))
    for digest, who in ((bytes(32), bob.address), (keccak(b"x"), alice.address)):
        with pytest.raises(ProtocolError) as caught:
            check(digest, signature, who)
        assert caught.value.code == "bad-signature"


@pytest.mark.parametrize("key", [bytes(32), ORDER.to_bytes(32, "big"), b"\x01" * 31, b""])
def test_bad_keys(key: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        Signer(key)
    assert caught.value.code == "bad-key"


def test_the_key_is_not_printed() -> None:
    signer = Signer(b"\x01" * 32)
    assert repr(signer) == f"Signer({signer.address})"
    with pytest.raises(ProtocolError):
        signer.sign(b"short")
