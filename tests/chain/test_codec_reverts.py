"""ABI values in and out, and errors for people: pure, against the packaged ABIs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from efedllm.chain.amounts import WEI
from efedllm.chain.artifacts import CONTRACTS, artifact
from efedllm.chain.codec import Codec, selector
from efedllm.chain.reverts import HINTS, decode_revert
from efedllm.errors import ChainError

A, B = "0x" + "11" * 20, "0x" + "22" * 20


@dataclass(frozen=True)
class Key:
    client: str
    signer: str
    model_id: bytes
    nonce: int
    expiry: int
    max_price_per_ktok: int
    nodes: tuple[str, ...]
    shares: tuple[int, ...]


def error_item(name: str) -> dict[str, object]:
    return next(
        item
        for contract in CONTRACTS
        for item in artifact(contract).abi
        if item["type"] == "error" and item["name"] == name
    )


def test_structs_in_every_style_encode_equally() -> None:
    codec = Codec("SessionEscrow", artifact("SessionEscrow").abi)
    key = Key(A, B, b"\x01" * 32, 1, 2, 3, (A, B), (4000, 6000))
    camel = {
        "maxPricePerKTok": 3,
        "modelId": "0x" + "01" * 32,
        "client": A,
        "signer": B,
        "nonce": 1,
        "expiry": 2,
        "nodes": [A, B],
        "shares": [4000, 6000],
    }
    styles = [key, vars(key), camel, (A, B, b"\x01" * 32, 1, 2, 3, [A, B], [4000, 6000])]
    assert len({codec.encode_call("sessionIdOf", [style]) for style in styles}) == 1


@pytest.mark.parametrize("value", [(A, B), {"client": A}, None, 5, "text"])
def test_structs_that_do_not_fit(value: object) -> None:
    codec = Codec("SessionEscrow", artifact("SessionEscrow").abi)
    with pytest.raises(ChainError) as caught:
        codec.encode_call("sessionIdOf", [value])
    assert caught.value.code == "bad-argument"


def test_names_that_do_not_exist() -> None:
    codec = Codec("EfedToken", artifact("EfedToken").abi)
    wrong: list[tuple[str, list[object]]] = [("steal", []), ("transfer", [A])]
    for name, args in wrong:
        with pytest.raises(ChainError) as caught:
            codec.encode_call(name, args)
        assert caught.value.code == "no-function"
    with pytest.raises(ChainError) as caught:
        codec.topic("Stolen")
    assert caught.value.code == "no-event"


def test_an_answer_of_another_contract() -> None:
    codec = Codec("EfedToken", artifact("EfedToken").abi)
    with pytest.raises(ChainError) as caught:
        codec.decode_result("totalSupply", 0, b"")
    assert caught.value.code == "bad-result"
    assert "--deployment" in caught.value.hint


def test_every_hint_is_for_an_error_that_exists() -> None:
    known = {item["name"] for name in CONTRACTS for item in artifact(name).abi if item["type"] == "error"}
    assert set(HINTS) - known == set()


def test_amounts_are_shown_as_amounts_and_counts_as_counts() -> None:
    item = error_item("InsufficientStake")
    error = decode_revert(selector(item) + encode(["uint256", "uint256"], [WEI + WEI // 2, 3]), "StakeVault.unbond")
    assert error.message == "StakeVault.unbond refused: insufficient stake (needed 1.5 EFED, available 3)."
    assert error.values == {"needed": WEI + WEI // 2, "available": 3}


def test_reasons_panics_and_unknown_errors() -> None:
    reason = decode_revert(bytes.fromhex("08c379a0") + encode(["string"], ["no way"]), "X.f")
    assert (reason.code, reason.message) == ("revert:Error", "X.f reverted: no way.")
    panic = decode_revert(bytes.fromhex("4e487b71") + (0x11).to_bytes(32, "big"), "X.f")
    assert "overflow" in panic.message
    unknown = decode_revert(b"\x01\x02\x03\x04rest", "X.f")
    assert (unknown.code, "0x01020304" in unknown.message) == ("revert:Unknown", True)
    assert "without a reason" in decode_revert(b"", "X.f").message


@given(st.binary(max_size=200), st.sampled_from(sorted(HINTS)))
def test_decoding_never_raises(tail: bytes, name: str) -> None:
    assert decode_revert(tail, "X.f").code.startswith("revert:")
    assert decode_revert(selector(error_item(name)) + tail, "X.f").code == f"revert:{name}"
