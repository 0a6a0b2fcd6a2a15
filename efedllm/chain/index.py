"""Events of the contracts, kept in memory and on disk, so that only new blocks are read."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efedllm.chain.deployment import write_json
from efedllm.chain.transport import Transport
from efedllm.chain.types import ChainEvent

# Blocks that are read again each time: a server may know the newest blocks and miss their latest logs.
LOG_MARGIN = 8
# Heads that are remembered, to find the last common block after a reorganisation or a rollback.
_ANCHORS = 32
MAX_EVENTS = 20_000
"""A longer history is not saved: reading and writing the file would take longer than asking the RPC server."""


@dataclass(frozen=True)
class Snapshot:
    """What was read: events in chain order, and anchors: (number, hash) of some heads up to which, oldest first."""

    anchors: tuple[tuple[int, bytes], ...] = ()
    events: tuple[ChainEvent, ...] = ()


class EventFile:
    """One contract's history in one file. A file with another `identity` is ignored.

    The file proves nothing: a reader must find one of the anchors on its chain before it uses the events.
    """

    def __init__(self, path: Path, contract: str, address: str, identity: dict[str, Any]) -> None:
        self._path = path
        self._contract = contract
        self._address = address
        self._identity = {**identity, "contract": contract, "address": address}

    def load(self) -> Snapshot:
        """The saved snapshot; an empty one when the file is missing, damaged or of another identity."""
        try:
            document = json.loads(self._path.read_text())
            if document["identity"] != self._identity:
                return Snapshot()
            return Snapshot(
                tuple((int(number), bytes.fromhex(seen)) for number, seen in document["anchors"]),
                tuple(self._event(item) for item in document["events"]),
            )
        except (OSError, ValueError, TypeError, KeyError):
            return Snapshot()

    def save(self, snapshot: Snapshot) -> bool:
        """Replace the file. Raises OSError.

        Returns False, and keeps the old file, when the history is too long or an event holds a struct (JSON would lose
        the names of its fields).
        """
        if len(snapshot.events) > MAX_EVENTS:
            return False
        try:
            events = [
                [e.name, {name: _plain(value) for name, value in e.args.items()}, e.block, e.tx_hash, e.log_index]
                for e in snapshot.events
            ]
        except TypeError:
            return False
        anchors = [[number, seen.hex()] for number, seen in snapshot.anchors]
        write_json(self._path, {"identity": self._identity, "anchors": anchors, "events": events}, 0o600)
        return True

    def _event(self, item: list[Any]) -> ChainEvent:
        name, args, block, tx_hash, log_index = item
        if [type(part) for part in item] != [str, dict, int, str, int]:
            raise TypeError(item)
        values = {key: _value(value) for key, value in args.items()}
        return ChainEvent(self._contract, name, values, self._address, block, tx_hash, log_index)


def _plain(value: Any) -> Any:
    """JSON of an event's argument. Raises TypeError for a struct."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_plain(item) for item in value]}
    if type(value) in (bool, int, str):
        return value
    raise TypeError(type(value).__name__)


def _value(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    ((kind, inner),) = plain.items()
    if kind == "bytes":
        return bytes.fromhex(inner)
    items = [_value(item) for item in inner]
    return tuple(items) if kind == "tuple" else items


class EventIndex:
    """All events of one contract between the deployment and the head, in chain order.

    Events of blocks that the chain no longer has are dropped, and the new blocks are read; that also holds for the
    events that `saved` brings from an earlier process.
    """

    def __init__(self, transport: Transport, contract: str, saved: Snapshot) -> None:
        self._transport = transport
        self._contract = contract
        self._first = transport.deployment.block
        self._anchors = list(saved.anchors)
        self._events = list(saved.events)
        self._lock = asyncio.Lock()

    @property
    def snapshot(self) -> Snapshot:
        """What was read so far."""
        return Snapshot(tuple(self._anchors), tuple(self._events))

    async def events(self) -> list[ChainEvent]:
        """Every event up to the current head. Do not modify the list. Raises ChainError."""
        async with self._lock:
            head = await self._transport.block_number()
            known = await self._known(head)
            start = max(self._first, known + 1 - LOG_MARGIN)
            # The hash before the logs: if the head is replaced in between, the next call reads it again.
            tip = await self._transport.block_hash(head) if head != known else None
            fresh = await self._transport.events(self._contract, from_block=start, to_block=head)
            self._events = [event for event in self._events if event.block < start] + fresh
            if tip is not None:
                self._anchors = [*self._anchors[1 - _ANCHORS :], (head, tip)]
            return self._events

    async def _known(self, head: int) -> int:
        """The last block read that the chain still has; forgets newer ones."""
        while self._anchors:
            number, seen = self._anchors[-1]
            if number <= head and await self._transport.block_hash(number) == seen:
                return number
            self._anchors.pop()
        return self._first - 1


class Histories:
    """The event indexes of a network's contracts. With a folder, they are saved for the next process."""

    def __init__(self, transport: Transport, folder: Path | None) -> None:
        self._transport = transport
        self._folder = folder
        self._indexes: dict[str, EventIndex] = {}

    async def events(self, contract: str, *names: str) -> list[ChainEvent]:
        """Events of a contract since the deployment: all, or those called `names`. Raises ChainError."""
        if contract not in self._indexes:
            file = self._file(contract)
            saved = await asyncio.to_thread(file.load) if file is not None else Snapshot()
            # Another task may have made the index meanwhile.
            self._indexes.setdefault(contract, EventIndex(self._transport, contract, saved))
        events = await self._indexes[contract].events()
        return [event for event in events if not names or event.name in names]

    def save(self) -> None:
        """Write what was read to the folder. Blocks on the disk. Raises OSError."""
        for contract, index in self._indexes.items():
            file = self._file(contract)
            if file is not None:
                file.save(index.snapshot)

    def _file(self, contract: str) -> EventFile | None:
        if self._folder is None:
            return None
        deployment, address = self._transport.deployment, self._transport.address(contract)
        identity = {
            "chain_id": deployment.chain_id,
            "first_block": deployment.block,
            "abi_sha256": deployment.contracts[contract].abi_sha256,
        }
        return EventFile(self._folder / f"{deployment.chain_id}-{address}.json", contract, address, identity)
