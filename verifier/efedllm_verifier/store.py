"""What a verifier must not lose: its verdicts and the salted attestation of each epoch.

SQLite in WAL mode with full synchronisation: once a method returned, its rows survive a kill and a power cut.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Integer, LargeBinary, MetaData, String, Table, Text, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from efedllm.storage import for_reading, open_sqlite
from efedllm_verifier.attestation import Attestation, NodeVerdict

_METADATA = MetaData()

# verdict is NULL when we abstained; detail says why, or where the report lies.
_VERDICTS = Table(
    "verdict",
    _METADATA,
    Column("epoch", Integer, primary_key=True),
    Column("node", String(42), primary_key=True),
    Column("verdict", Integer),
    Column("evidence", LargeBinary(32)),
    Column("tap", LargeBinary(32)),
    Column("detail", Text, nullable=False),
)

_ATTESTATIONS = Table(
    "attestation",
    _METADATA,
    Column("epoch", Integer, primary_key=True),
    Column("nodes", Text, nullable=False),
    Column("verdicts", Text, nullable=False),
    Column("taps", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("salt", LargeBinary(32), nullable=False),
    Column("commit_tx", String(66)),
    Column("reveal_tx", String(66)),
)


class AttestationStore:
    """One file per network and wallet. Use `AttestationStore.open`, then `close`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._reading = for_reading(engine)

    @classmethod
    async def open(cls, path: Path) -> AttestationStore:
        """Open or create the database file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = open_sqlite(path)
        async with engine.begin() as connection:
            await connection.run_sync(_METADATA.create_all)
        return cls(engine)

    async def close(self) -> None:
        """Release the file."""
        await self._engine.dispose()

    async def put_verdict(self, epoch: int, verdict: NodeVerdict, report: Path) -> None:
        """Record a finished audit; the first record of an (epoch, node) stays."""
        await self._keep_first(
            _VERDICTS,
            {
                "epoch": epoch,
                "node": verdict.node,
                "verdict": verdict.verdict,
                "evidence": verdict.evidence,
                "tap": verdict.tap,
                "detail": str(report),
            },
        )

    async def put_abstention(self, epoch: int, node: str, reason: str) -> None:
        """Record that we give no verdict on this node in this epoch."""
        await self._keep_first(
            _VERDICTS, {"epoch": epoch, "node": node, "verdict": None, "evidence": None, "tap": None, "detail": reason}
        )

    async def verdicts(self, epoch: int) -> tuple[list[NodeVerdict], dict[str, str]]:
        """Finished verdicts of an epoch, and node -> reason for the abstentions."""
        async with self._reading.connect() as connection:
            rows = (await connection.execute(select(_VERDICTS).where(_VERDICTS.c.epoch == epoch))).all()
        done = [NodeVerdict(row.node, row.verdict, row.evidence, row.tap) for row in rows if row.verdict is not None]
        return done, {row.node: row.detail for row in rows if row.verdict is None}

    async def put_attestation(self, attestation: Attestation) -> Attestation:
        """Record the attestation unless the epoch has one; returns the one on record, the only one to use."""
        await self._keep_first(
            _ATTESTATIONS,
            {
                "epoch": attestation.epoch,
                "nodes": json.dumps(attestation.nodes),
                "verdicts": json.dumps(attestation.verdicts),
                "taps": json.dumps([item.hex() for item in attestation.taps]),
                "evidence": json.dumps([item.hex() for item in attestation.evidence]),
                "salt": attestation.salt,
            },
        )
        stored = await self.attestation(attestation.epoch)
        assert stored is not None
        return stored

    async def attestation(self, epoch: int) -> Attestation | None:
        """The epoch's attestation, None when none was prepared."""
        async with self._reading.connect() as connection:
            row = (await connection.execute(select(_ATTESTATIONS).where(_ATTESTATIONS.c.epoch == epoch))).one_or_none()
        if row is None:
            return None
        return Attestation(
            row.epoch,
            tuple(json.loads(row.nodes)),
            tuple(json.loads(row.verdicts)),
            tuple(bytes.fromhex(item) for item in json.loads(row.taps)),
            tuple(bytes.fromhex(item) for item in json.loads(row.evidence)),
            row.salt,
        )

    async def note_commit(self, epoch: int, tx: str) -> None:
        """Remember the commit transaction, for `status`."""
        await self._note(epoch, {"commit_tx": tx})

    async def note_reveal(self, epoch: int, tx: str) -> None:
        """Remember the reveal transaction, for `status`."""
        await self._note(epoch, {"reveal_tx": tx})

    async def history(self, limit: int = 20) -> list[dict[str, Any]]:
        """The newest attestations, as plain records for `status`."""
        query = select(_ATTESTATIONS).order_by(_ATTESTATIONS.c.epoch.desc()).limit(limit)
        async with self._reading.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [
            {
                "epoch": row.epoch,
                "verdicts": dict(zip(json.loads(row.nodes), json.loads(row.verdicts), strict=True)),
                "commit_tx": row.commit_tx,
                "reveal_tx": row.reveal_tx,
            }
            for row in rows
        ]

    async def _keep_first(self, table: Table, values: dict[str, Any]) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(insert(table).values(values).on_conflict_do_nothing())

    async def _note(self, epoch: int, values: dict[str, Any]) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(_ATTESTATIONS.update().where(_ATTESTATIONS.c.epoch == epoch).values(values))
