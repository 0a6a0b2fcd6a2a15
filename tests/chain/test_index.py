"""Events kept for the next process: the same ones, and only as long as the chain still has their blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efedllm.chain import Chain, ChainEvent
from efedllm.chain import index as module
from efedllm.chain.index import EventFile, Snapshot
from tests.live_network import LiveNetwork

ADDRESS = "0x" + "Ab" * 20
IDENTITY = {"chain_id": 1337, "first_block": 3, "abi_sha256": "00"}

values = st.recursive(
    st.one_of(st.integers(0, 2**256 - 1), st.binary(max_size=40), st.text(max_size=20), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple)),
    max_leaves=6,
)


def an_event(args: dict[str, Any], block: int = 4) -> ChainEvent:
    return ChainEvent("EfedToken", "Transfer", args, ADDRESS, block, "0x01", 2)


def file(path: Path, **changes: Any) -> EventFile:
    return EventFile(path, "EfedToken", ADDRESS, IDENTITY | changes)


@given(st.lists(st.dictionaries(st.text(max_size=8), values, max_size=4), max_size=4))
def test_what_is_kept_comes_back(tmp_path_factory: pytest.TempPathFactory, args: list[dict[str, Any]]) -> None:
    kept = file(tmp_path_factory.mktemp("events") / "a.json")
    snapshot = Snapshot(((4, b"\x01" * 32), (9, b"\x02" * 32)), tuple(an_event(item) for item in args))
    assert kept.save(snapshot)
    assert kept.load() == snapshot


def test_a_torn_or_foreign_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert file(path).load() == Snapshot()
    file(path).save(Snapshot(((4, b"\x01" * 32),), (an_event({"value": 1}),)))
    for other in ({"chain_id": 1}, {"first_block": 4}, {"abi_sha256": "01"}):
        assert file(path, **other).load() == Snapshot()
    assert EventFile(path, "EfedToken", "0x" + "cd" * 20, IDENTITY).load() == Snapshot()
    whole = path.read_text()
    document = json.loads(whole)
    document["events"][0][1] = {"value": {"set": [1], "bytes": "00"}}
    for text in (whole[:-20], "[]", "{}", json.dumps(document)):
        path.write_text(text)
        assert file(path).load() == Snapshot()
    for place, odd in ((0, 1), (1, [1]), (2, "4"), (3, None), (4, 0.5)):
        document = json.loads(whole)
        document["events"][0][place] = odd
        path.write_text(json.dumps(document))
        assert file(path).load() == Snapshot()
    path.write_bytes(b"\xff\xfe")
    assert file(path).load() == Snapshot()


def test_what_does_not_fit_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Struct(NamedTuple):
        value: int

    path = tmp_path / "a.json"
    good = Snapshot((), (an_event({"value": 1}),))
    assert file(path).save(good)
    assert not file(path).save(Snapshot((), (an_event({"terms": Struct(1)}),)))
    monkeypatch.setattr(module, "MAX_EVENTS", 1)
    assert not file(path).save(Snapshot((), (an_event({"value": 1}), an_event({"value": 2}))))
    assert file(path).load() == good


async def read(deployed: LiveNetwork, folder: Path) -> tuple[list[int], list[int]]:
    """What a new process sees of the transfers, and the first blocks that it asked for."""
    asked: list[int] = []
    async with await deployed.connect(None, histories=folder) as chain:
        events = chain.transport.events

        async def counted(*args: Any, **options: Any) -> list[ChainEvent]:
            asked.append(options["from_block"])
            return await events(*args, **options)

        chain.transport.events = counted  # type: ignore[method-assign]
        found = await chain.history("EfedToken", "Transfer")
        again = await chain.history("EfedToken", "Transfer")
        assert again == found
    return [event.args["value"] for event in found if event.args["value"] < 100], asked


async def test_the_next_process_reads_only_new_blocks(deployed: LiveNetwork, chain: Chain, tmp_path: Path) -> None:
    for value in (1, 2, 3):
        await chain.contracts.efed_token.transfer(chain.account_address, value)
    for _ in range(20):
        await chain.rpc.request("evm_mine")
    known = await chain.block_number()
    values, asked = await read(deployed, tmp_path)
    assert (values, asked[0]) == ([1, 2, 3], deployed.deployment.block)
    await chain.contracts.efed_token.transfer(chain.account_address, 4)
    values, asked = await read(deployed, tmp_path)
    assert values == [1, 2, 3, 4]
    assert known - 8 < asked[0] <= known
    full = [event async for event in _all(deployed, None)]
    assert full == [event async for event in _all(deployed, tmp_path)]


async def _all(deployed: LiveNetwork, folder: Path | None) -> Any:
    async with await deployed.connect(None, histories=folder) as chain:
        for event in await chain.history("EfedToken"):
            yield event


async def test_what_a_rolled_back_chain_forgot_is_forgotten_on_disk_too(
    deployed: LiveNetwork, chain: Chain, tmp_path: Path
) -> None:
    await chain.contracts.efed_token.transfer(chain.account_address, 1)
    snapshot = await chain.rpc.request("evm_snapshot")
    await chain.contracts.efed_token.transfer(chain.account_address, 2)
    assert (await read(deployed, tmp_path))[0] == [1, 2]
    await chain.rpc.request("evm_revert", [snapshot])
    for _ in range(20):
        await chain.rpc.request("evm_mine")
    values, asked = await read(deployed, tmp_path)
    assert values == [1]
    assert asked[0] == deployed.deployment.block
