"""The typed contracts: results have their types, our own messages are the structs that the contracts take."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest

from efedllm.chain import Chain
from efedllm.chain.amounts import WEI
from efedllm.chain.artifacts import CONTRACTS, artifact
from efedllm.chain.contracts import Contracts, EscrowSession, ModelParams, RegisteredModel, SeatTerms, StakeView
from efedllm.chain.reverts import RevertError
from efedllm.commitments.session import SessionKey, Voucher
from efedllm.errors import ConfigError
from efedllm_deploy.contract_types import EXISTING, render_contracts, snake_case

STRANGER = "0x1111111111111111111111111111111111111111"


def _key(client: str) -> SessionKey:
    return SessionKey(client, STRANGER, b"\x07" * 32, 2**64 - 1, 2**40 - 1, 2**64 - 1, (STRANGER, client), (1, 9_999))


async def test_reads_have_the_types_they_name(chain: Chain) -> None:
    contracts, me = chain.contracts, chain.account_address
    supply = await contracts.efed_token.total_supply()
    assert type(supply) is int
    assert supply == await chain.call("EfedToken", "totalSupply")
    assert await contracts.efed_token.name() == "eFedLLM"
    assert await contracts.stake_vault.token() == chain.address("EfedToken")
    assert await contracts.efed_token.has_role(bytes(32), me) is True
    assert await contracts.seat_registry.seats_of(1) == []
    assert await contracts.session_escrow.session_of(bytes(32)) == EscrowSession(0, 0, 0, 0, 0, False)
    terms = await contracts.seat_registry.terms()
    raw = await chain.call("SeatRegistry", "terms")
    assert terms == SeatTerms(committee_size=raw.committeeSize, seat_stake=raw.seatStake)
    totals = await contracts.stake_vault.totals()
    assert (totals.active, totals.unbonding) == (0, 0)


async def test_transactions_and_reads_of_an_older_block(chain: Chain) -> None:
    contracts, me = chain.contracts, chain.account_address
    before = await chain.block_number()
    await contracts.efed_token.approve(chain.address("StakeVault"), 100 * WEI)
    done = await contracts.stake_vault.stake(100 * WEI)
    assert done.event("Staked").args["operator"] == me
    assert await contracts.stake_vault.stake_of(me) == StakeView(100 * WEI, 0, 0, 0, 0)
    assert await contracts.stake_vault.stake_of(me, block=before) == StakeView(0, 0, 0, 0, 0)
    with pytest.raises(RevertError) as refused:
        await contracts.stake_vault.unbond(101 * WEI)
    assert refused.value.name == "InsufficientStake"
    with pytest.raises(RevertError):
        await contracts.seat_registry.check_seated(1, me)


async def test_structs_go_out_by_name_and_come_back(chain: Chain) -> None:
    contracts = chain.contracts
    params = ModelParams(b"\x01" * 32, 4, 8, 10_000, 0, 1, b"\x02" * 32, bytes(32))
    done = await contracts.model_registry.register(bytes(32), params, b"\x09" * 32, "http://models")
    model_id = done.event("ModelRegistered").args["modelId"]
    model = await contracts.model_registry.model_of(model_id)
    assert model == RegisteredModel(b"\x01" * 32, chain.account_address, 4, 8, 10_000, 0, 1, model.status, b"\x02" * 32)
    assert (await contracts.model_registry.shape_of(model_id)).layers == 4


async def test_our_messages_are_the_structs_of_the_contracts(chain: Chain) -> None:
    escrow, (chain_id, address) = chain.contracts.session_escrow, chain.escrow_domain
    key = _key(chain.account_address)
    assert await escrow.session_id_of(key) == key.session_id(chain_id, address)
    voucher = Voucher(key.session_id(chain_id, address), 2**128 - 1, 2**64 - 1, b"\x03" * 32)
    assert await escrow.voucher_digest(voucher) == voucher.digest(chain_id, address)


def test_every_contract_of_a_deployment_has_its_class() -> None:
    class Nothing:
        async def call(self, contract: str, fn: str, *args: Any, block: int | str = "latest") -> Any:
            raise AssertionError(contract, fn, args, block)

        async def send(self, contract: str, fn: str, *args: Any) -> Any:
            raise AssertionError(contract, fn, args)

    typed = {type(item).__name__: item for item in vars(Contracts(Nothing())).values()}
    assert set(typed) == set(CONTRACTS)
    for name, item in typed.items():
        functions = {snake_case(entry["name"]) for entry in artifact(name).abi if entry["type"] == "function"}
        assert functions == {method for method in dir(item) if not method.startswith("_")} - {"NAME"}


def test_messages_that_stand_for_structs_have_their_fields() -> None:
    seen: set[str] = set()
    for entry in (entry for name in CONTRACTS for entry in artifact(name).abi if entry["type"] == "function"):
        for part in (part for part in entry["inputs"] if part["type"].startswith("tuple")):
            name = part["internalType"].rpartition(".")[2].removesuffix("[]")
            if name in EXISTING:
                message = getattr(importlib.import_module(EXISTING[name]), name)
                fields = [snake_case(component["name"]) for component in part["components"]]
                assert [field.name for field in dataclasses.fields(message)] == fields
                seen.add(name)
    assert seen == set(EXISTING)


def _abi(name: str, *inputs: str, mutability: str = "view", outputs: tuple[Any, ...] = ()) -> dict[str, Any]:
    parts = [{"name": f"value{index}", "type": kind} for index, kind in enumerate(inputs)]
    return {
        "type": "function",
        "name": name,
        "inputs": parts,
        "outputs": list(outputs),
        "stateMutability": mutability,
    }


def test_overloads_have_names_of_their_own() -> None:
    text = render_contracts({"Box": {"abi": [_abi("put", "uint8"), _abi("put", "uint8", "bytes", "string[]")]}})
    assert "async def put(self, value0: int, *" in text
    assert "async def put_3(self, value0: int, value1: bytes, value2: Sequence[str], *" in text


def test_python_names() -> None:
    names = ("pricePerKTok", "nodes_", "MAX_URI_LENGTH", "from", "eip712Domain", "e0")
    assert [snake_case(name) for name in names] == [
        "price_per_ktok",
        "nodes",
        "max_uri_length",
        "from_",
        "eip712_domain",
        "e0",
    ]


INNER = {"name": "inner", "type": "tuple", "internalType": "struct Box.Inner", "components": []}
NESTED = {"name": "", "type": "tuple", "internalType": "struct Box.Outer", "components": [INNER]}


@pytest.mark.parametrize(
    "abi",
    [
        [_abi("put", "uint8", mutability="payable")],
        [_abi("put", "uint8"), _abi("put", "bytes")],
        [_abi("get", outputs=(NESTED,))],
    ],
)
def test_what_cannot_be_typed_is_refused(abi: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError) as refused:
        render_contracts({"Box": {"abi": abi}})
    assert refused.value.code == "unsupported-abi"
