"""Accounts and their files against eth_account, an independent implementation of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.chain import keyfile, keystore
from efedllm.chain.account import LocalAccount, rlp
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import as_address
from efedllm.commitments.signing import Signer
from efedllm.errors import ProtocolError
from efedllm_client.payments.wallet import Permit
from efedllm_deploy.local import ACCOUNTS, MNEMONIC, dev_account

KEY = b"\x07" * 32
keys = st.integers(1, 2**255).map(lambda number: number.to_bytes(32, "big"))
addresses = st.binary(min_size=20, max_size=20).map(lambda data: as_address("0x" + data.hex()))
numbers = st.integers(0, 2**64 - 1)
fees: st.SearchStrategy[dict[str, int]] = st.one_of(
    st.fixed_dictionaries({"gasPrice": numbers}),
    st.tuples(numbers, numbers).map(
        lambda both: {"maxPriorityFeePerGas": min(both), "maxFeePerGas": max(both)},
    ),
)


@given(
    key=keys,
    fee=fees,
    to=st.none() | addresses,
    nonce=numbers,
    gas=numbers,
    value=st.integers(0, 2**200),
    data=st.binary(max_size=300),
    chain_id=st.integers(1, 2**31),
)
def test_a_transaction_is_signed_as_every_ethereum_library_does(
    key: bytes,
    fee: dict[str, int],
    to: str | None,
    nonce: int,
    gas: int,
    value: int,
    data: bytes,
    chain_id: int,
) -> None:
    transaction: dict[str, Any] = {"chainId": chain_id, "nonce": nonce, "gas": gas, "value": value, "data": data, **fee}
    if to is not None:
        transaction["to"] = to
    ours, theirs = LocalAccount(key), Account.from_key(key)
    assert ours.address == theirs.address
    signed, expected = ours.sign_transaction(transaction), theirs.sign_transaction(transaction)
    assert signed.raw_transaction == bytes(expected.raw_transaction)
    assert signed.hash == bytes(expected.hash)


@pytest.mark.parametrize(
    ("item", "encoded"),
    [
        (b"dog", b"\x83dog"),
        ([b"cat", b"dog"], b"\xc8\x83cat\x83dog"),
        (b"", b"\x80"),
        ([], b"\xc0"),
        (0, b"\x80"),
        (15, b"\x0f"),
        (1024, b"\x82\x04\x00"),
        ([[], [[]], [[], [[]]]], b"\xc7\xc0\xc1\xc0\xc3\xc0\xc1\xc0"),
        (b"a" * 56, b"\xb8\x38" + b"a" * 56),
        ([b"a" * 55, b"bb"], b"\xf8\x3b\xb7" + b"a" * 55 + b"\x82bb"),
    ],
)
def test_rlp_examples_of_the_yellow_paper(item: Any, encoded: bytes) -> None:
    assert rlp(item) == encoded


def test_the_key_is_not_printed_and_must_be_one() -> None:
    assert KEY.hex() not in repr(LocalAccount(KEY))
    assert LocalAccount(KEY).key == KEY
    with pytest.raises(ProtocolError) as caught:
        LocalAccount(bytes(32))
    assert caught.value.code == "bad-key"


@settings(max_examples=10, deadline=None)
@given(key=keys, password=st.text(max_size=20), fast=st.booleans())
def test_other_programs_open_our_files_and_we_theirs(key: bytes, password: str, fast: bool) -> None:
    stretching = keyfile.pbkdf2(3) if fast else keyfile.scrypt(keystore.LIGHT_N)
    ours = json.loads(json.dumps(keyfile.encrypt(key, password.encode(), stretching)))
    assert bytes(Account.decrypt(ours, password)) == key
    assert ours["address"] == Account.from_key(key).address[2:].lower()
    if password:
        kdf = "pbkdf2" if fast else "scrypt"
        theirs = Account.encrypt(key, password, kdf=kdf, iterations=8)  # type: ignore[arg-type]
        assert keyfile.decrypt(json.loads(json.dumps(theirs)), password.encode()) == key
        with pytest.raises(keyfile.WrongPasswordError):
            keyfile.decrypt(theirs, password.encode() + b"x")


def test_a_file_of_usual_cost_opens(tmp_path: Path) -> None:
    """scrypt with 256 MB, as wallets write it."""
    path = tmp_path / "key.json"
    keystore.create(path, "secret", private_key=KEY)
    assert json.loads(path.read_text())["crypto"]["kdfparams"]["n"] == keystore.STANDARD_N
    assert keystore.load(path, "secret").key == KEY


@pytest.mark.parametrize(
    "change",
    [
        {"kdf": "argon2"},
        {"cipher": "aes-256-cbc"},
        {"kdfparams": {"n": 2**30, "r": 8, "p": 1, "dklen": 32, "salt": "00"}},
        {"kdfparams": {"n": 1024, "r": 8, "p": 1, "dklen": 16, "salt": "00"}},
    ],
)
def test_files_of_another_kind_are_refused(change: dict[str, Any]) -> None:
    document = keyfile.encrypt(KEY, b"secret", keyfile.scrypt(1024))
    document["crypto"] |= change
    with pytest.raises(ValueError, match=r"known|memory|short"):
        keyfile.decrypt(document, b"secret")


def test_the_development_accounts_are_those_of_the_mnemonic() -> None:
    Account.enable_unaudited_hdwallet_features()
    for index in range(ACCOUNTS):
        expected = Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}")
        assert (dev_account(index).address, dev_account(index).key) == (expected.address, bytes(expected.key))


def test_a_permit_is_the_typed_data_of_eip_2612() -> None:
    owner, spender, token = (as_address("0x" + bytes([byte]).hex() * 20) for byte in (1, 2, 3))
    permit = Permit(owner, spender, 10**20, 7, 2_000_000_000)
    types = {"Permit": [{"name": name, "type": kind} for kind, name in Permit.SOLIDITY]}
    domain = {"name": "Token", "version": "1", "chainId": 5, "verifyingContract": token}
    signed = Account.from_key(KEY).sign_message(encode_typed_data(domain, types, permit.to_json()))
    digest = Domain(5, token, "Token", "1").digest(permit.struct_hash())
    assert Signer(KEY).sign(digest) == bytes(signed.signature)
