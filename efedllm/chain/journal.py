"""Signed transactions whose outcome is unknown. A retry sends the same transaction again, never a second one."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from efedllm.chain.deployment import write_json

# Seconds. A call that is repeated later than this is a new call, not a retry.
RETRY_WINDOW = 600.0


@dataclass(frozen=True)
class Pending:
    """A signed transaction. `payload` identifies its purpose: hash of chain, sender, target, calldata and value."""

    payload: str
    raw: str
    hash: str
    nonce: int
    created: float


class Journal:
    """Pending transactions of one account, in memory and, with a path, across restarts of the process."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._running: dict[str, Pending] = {}
        self._orphans: dict[str, Pending] = {}
        if path is not None and path.exists():
            try:
                self._orphans = {item["payload"]: Pending(**item) for item in json.loads(path.read_text())}
            except (ValueError, TypeError, KeyError):
                # A torn or foreign file only loses the protection against a repeated send.
                self._orphans = {}

    def start(self, pending: Pending) -> None:
        """Remember a transaction before it is broadcast."""
        self._running[pending.hash] = pending
        self._save()

    def finish(self, pending: Pending) -> None:
        """Forget a transaction whose outcome is known."""
        self._running.pop(pending.hash, None)
        self._save()

    def orphan(self, pending: Pending) -> None:
        """Keep a transaction whose caller stopped waiting, for a retry of the same call."""
        if self._running.pop(pending.hash, None) is not None:
            self._orphans[pending.payload] = pending
            self._save()

    def adopt(self, payload: str) -> Pending | None:
        """Return a recent orphan with this payload as a running transaction; None when there is none."""
        pending = self._orphans.pop(payload, None)
        if pending is None:
            return None
        if time.time() - pending.created > RETRY_WINDOW:
            self._save()
            return None
        self._running[pending.hash] = pending
        return pending

    def _save(self) -> None:
        if self._path is not None:
            entries = [asdict(item) for item in (*self._running.values(), *self._orphans.values())]
            write_json(self._path, entries, mode=0o600)
