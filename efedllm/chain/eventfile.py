"""Events of one contract on disk, so that the next process reads only the blocks that are new."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efedllm.chain.deployment import write_json
from efedllm.chain.types import ChainEvent

MAX_EVENTS = 20_000
"""A longer history is not kept: reading and writing it would take longer than asking for a part of it."""


@dataclass(frozen=True)
class Snapshot:
    """What was read: events in chain order, and some (number, hash) of the blocks up to which, oldest first."""

    anchors: tuple[tuple[int, bytes], ...] = ()
    events: tuple[ChainEvent, ...] = ()


class EventFile:
    """One contract's history in one file. `identity` says whose: another one's file is as good as none.

    Nothing is proven by it: a reader must find one of the anchors on its chain before it believes the events.
    """

    def __init__(self, path: Path, contract: str, address: str, identity: dict[str, Any]) -> None:
        self._path = path
        self._contract = contract
        self._address = address
        self._identity = {**identity, "contract": contract, "address": address}

    def load(self) -> Snapshot:
        """What was kept; an empty snapshot where there is no file, a torn or a foreign one."""
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
        """Replace the file. False, and the old one stays, for a history that is too long or holds structs, whose fields
        JSON would not keep. Raises OSError."""
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
