"""What must survive the process: vouchers, jobs and their commitments, envelopes, batches, reward progress."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import RowMapping, and_, delete, func, insert, or_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from efedllm.commitments.evidence import EnvelopeRecord
from efedllm.commitments.messages import SignedCommit, Voucher
from efedllm.storage import for_reading, open_sqlite
from efedllm_node.jobs.admission import job_exists
from efedllm_node.storage.records import (
    BatchRecord,
    BoundaryPlace,
    Committed,
    JobRecord,
    LeafRecord,
    OriginRecord,
    PendingLeaf,
    Predecessor,
    SessionRecord,
)
from efedllm_node.storage.row_mapping import (
    batch_of,
    envelope_of,
    envelope_rows,
    job_of,
    job_row,
    place_of,
    predecessor_of,
    session_columns,
    session_of,
    signed_of,
)
from efedllm_node.storage.tables import (
    batches,
    envelopes,
    jobs,
    metadata,
    origins,
    predecessors,
    rewards,
    sessions,
)


class Store:
    """Every method is one transaction: after it returns, a crash loses nothing of it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._reading = for_reading(engine)

    @classmethod
    async def open(cls, path: Path) -> Store:
        """Open or create the database file."""
        engine = open_sqlite(path)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        return cls(engine)

    async def close(self) -> None:
        await self._engine.dispose()

    async def _rows(self, query: Any) -> Sequence[RowMapping]:
        async with self._reading.connect() as connection:
            return (await connection.execute(query)).mappings().all()

    async def _first(self, query: Any) -> RowMapping | None:
        async with self._reading.connect() as connection:
            return (await connection.execute(query)).mappings().first()

    async def _write(self, *statements: Any) -> None:
        async with self._engine.begin() as connection:
            for statement in statements:
                await connection.execute(statement)

    # --- sessions and vouchers ---

    async def sessions(self) -> list[SessionRecord]:
        """Every session not yet closed, and closed ones with jobs still kept."""
        return [session_of(row) for row in await self._rows(select(sessions))]

    async def add_session(self, record: SessionRecord) -> None:
        """Keep a session we saw for the first time."""
        await self._write(
            upsert(sessions)
            .values(
                session_id=record.session_id,
                key_json=json.dumps(record.key.to_json()),
                hop=record.hop,
                price=record.price,
                deposit=str(record.deposit),
                settled=str(record.settled),
                status=record.status,
                cumulative=str(record.cumulative),
                billed=record.billed,
            )
            .on_conflict_do_nothing()
        )

    async def save_voucher(self, voucher: Voucher, signature: bytes) -> None:
        """Keep a better voucher. It is on disk when this returns."""
        await self._write(
            update(sessions)
            .where(sessions.c.session_id == voucher.session_id)
            .values(
                cumulative=str(voucher.cumulative), voucher_json=json.dumps(voucher.to_json()), voucher_sig=signature
            )
        )

    async def save_chain_state(self, session_id: bytes, deposit: int, settled: int, status: int) -> None:
        """Keep what the chain says of a session."""
        await self._write(
            update(sessions)
            .where(sessions.c.session_id == session_id)
            .values(deposit=str(deposit), settled=str(settled), status=status)
        )

    # --- jobs ---

    async def has_job(self, job_id: bytes) -> bool:
        """Whether a job with this id was ever opened here."""
        return await self._first(select(jobs.c.number).where(jobs.c.job_id == job_id)) is not None

    async def add_job(self, record: JobRecord) -> None:
        """Keep a job before any work on it. ProtocolError "job-exists" when its number was used."""
        try:
            await self._write(insert(jobs).values(status="open", **job_row(record)))
        except IntegrityError as error:
            raise job_exists() from error

    async def finish_job(self, job_id: bytes, done: Committed) -> bool:
        """Keep a commitment with its evidence, and bill the session; before the commitment is shown to anyone.

        False, and nothing is kept, when the job has ended: its commitment must not be shown.
        """
        commit = done.signed.commit
        return await self._end(
            job_id,
            done.billed,
            done.envelopes,
            done.previous,
            status="done",
            emitted=done.emitted,
            positions=commit.tokens,
            in_root=commit.in_root,
            out_root=commit.out_root,
            commit_json=json.dumps(commit.to_json()),
            commit_sig=done.signed.signature,
            commit_digest=done.digest,
            salt=done.salt,
            epoch=commit.epoch,
        )

    async def end_job(
        self,
        job_id: bytes,
        status: str,
        positions: int,
        billed: int,
        fault: str | None = None,
        evidence: Sequence[EnvelopeRecord] = (),
    ) -> bool:
        """Keep the end of a job without a commitment: status "aborted" or "cancelled". False when it had ended."""
        return await self._end(job_id, billed, evidence, None, status=status, positions=positions, fault=fault)

    async def _end(
        self,
        job_id: bytes,
        billed: int,
        evidence: Sequence[EnvelopeRecord],
        previous: SignedCommit | None,
        **values: Any,
    ) -> bool:
        """A job ends once, whatever becomes of the process: a second commitment for it would cost half the stake."""
        mine = select(jobs.c.session_id).where(jobs.c.job_id == job_id).scalar_subquery()
        rows = envelope_rows(evidence)
        async with self._engine.begin() as connection:
            ended = await connection.execute(
                update(jobs).where(and_(jobs.c.job_id == job_id, jobs.c.status == "open")).values(**values)
            )
            if ended.rowcount != 1:
                return False
            await connection.execute(
                update(sessions).where(sessions.c.session_id == mine).values(billed=sessions.c.billed + billed)
            )
            if rows:
                await connection.execute(upsert(envelopes).on_conflict_do_nothing(), rows)
            if previous is not None:
                kept = {"commit_json": json.dumps(previous.commit.to_json()), "commit_sig": previous.signature}
                await connection.execute(insert(predecessors).values(job_id=job_id, **kept))
            return True

    async def unfinished(self) -> list[tuple[JobRecord, SessionRecord]]:
        """Jobs that a previous process left open."""
        rows = await self._rows(
            select(jobs, *session_columns()).join_from(jobs, sessions).where(jobs.c.status == "open")
        )
        return [(job_of(row), session_of(row, "s_")) for row in rows]

    async def receipt(self, job_id: bytes) -> SignedCommit | None:
        """Our signed commitment of a job."""
        row = await self._first(select(jobs).where(and_(jobs.c.job_id == job_id, jobs.c.status == "done")))
        return None if row is None else signed_of(row)

    async def previous(self, job_id: bytes) -> Predecessor | None:
        """What the hop before signed to us about a job that we committed to."""
        query = select(predecessors, jobs.c.hop, jobs.c.route_json).join_from(predecessors, jobs)
        row = await self._first(query.where(predecessors.c.job_id == job_id))
        return None if row is None else predecessor_of(row)

    async def audited_epoch(self, job_id: bytes) -> int | None:
        """Epoch of the batch on chain that holds a job's leaf; None when there is none."""
        row = await self._first(
            select(batches.c.epoch)
            .join_from(jobs, batches, jobs.c.batch == batches.c.number)
            .where(and_(jobs.c.job_id == job_id, batches.c.status == "posted"))
        )
        return None if row is None else int(row["epoch"])

    async def boundary_by_root(self, root: bytes) -> BoundaryPlace | None:
        """Which job's rows have this boundary root."""
        row = await self._first(
            select(jobs).where(and_(jobs.c.status == "done", or_(jobs.c.in_root == root, jobs.c.out_root == root)))
        )
        return None if row is None else place_of(row, incoming=row["in_root"] == root)

    async def boundary_of(self, job_id: bytes, boundary: int) -> BoundaryPlace | None:
        """The rows of one boundary of a committed job, None when we are at neither end of it."""
        row = await self._first(select(jobs).where(and_(jobs.c.job_id == job_id, jobs.c.status == "done")))
        if row is None or boundary not in (row["hop"], row["hop"] + 1):
            return None
        return place_of(row, incoming=boundary == row["hop"])

    async def evidence(self, job_id: bytes, boundary: int) -> list[EnvelopeRecord]:
        """Envelopes of one boundary in position order."""
        rows = await self._rows(
            select(envelopes)
            .where(and_(envelopes.c.job_id == job_id, envelopes.c.boundary == boundary))
            .order_by(envelopes.c.from_pos)
        )
        return [envelope_of(row) for row in rows]

    async def counts(self) -> dict[str, int]:
        """Jobs by status."""
        rows = await self._rows(select(jobs.c.status, func.count().label("n")).group_by(jobs.c.status))
        return {row["status"]: row["n"] for row in rows}

    # --- batches ---

    async def pending_leaves(self) -> list[PendingLeaf]:
        """Commitments without a batch, oldest first."""
        rows = await self._rows(
            select(jobs.c.job_id, jobs.c.commit_digest, jobs.c.salt, jobs.c.epoch)
            .where(and_(jobs.c.status == "done", jobs.c.batch.is_(None), jobs.c.late == 0))
            .order_by(jobs.c.number)
        )
        return [PendingLeaf(row["job_id"], row["commit_digest"], row["salt"], row["epoch"]) for row in rows]

    async def mark_late(self, job_ids: Sequence[bytes]) -> None:
        """These commitments can be in no batch any more; receipts and bytes stay."""
        await self._write(update(jobs).where(jobs.c.job_id.in_(job_ids)).values(late=1))

    async def plan(self, seq: int, epoch: int, root: bytes, job_ids: Sequence[bytes]) -> BatchRecord:
        """Keep a batch, with its leaves in this order, before its transaction is sent."""
        async with self._engine.begin() as connection:
            done = await connection.execute(
                insert(batches).values(seq=seq, epoch=epoch, root=root, count=len(job_ids), status="planned")
            )
            key = done.inserted_primary_key
            assert key is not None
            number = int(key[0])
            for place, job_id in enumerate(job_ids):
                await connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(batch=number, place=place))
        return BatchRecord(number, seq, epoch, root, len(job_ids), "planned")

    async def planned(self) -> BatchRecord | None:
        """The batch whose transaction may or may not have been mined."""
        row = await self._first(select(batches).where(batches.c.status == "planned"))
        return None if row is None else batch_of(row)

    async def last_posted_epoch(self) -> int:
        """Epoch of the newest batch on chain, 0 before the first."""
        row = await self._first(select(func.max(batches.c.epoch).label("e")).where(batches.c.status == "posted"))
        return 0 if row is None or row["e"] is None else int(row["e"])

    async def mark_posted(self, number: int, timestamp: int) -> None:
        """The batch is on chain. `timestamp`: chain time."""
        await self._write(
            update(batches).where(batches.c.number == number).values(status="posted", posted_at=timestamp)
        )

    async def supersede(self, number: int) -> None:
        """The batch is not on chain: its leaves are free for another one."""
        await self._write(
            update(batches).where(batches.c.number == number).values(status="superseded"),
            update(jobs).where(jobs.c.batch == number).values(batch=None, place=None),
        )

    async def posted(self, seq: int) -> tuple[BatchRecord, list[LeafRecord]] | None:
        """A batch on chain with its leaves in order."""
        row = await self._first(select(batches).where(and_(batches.c.seq == seq, batches.c.status == "posted")))
        if row is None:
            return None
        leaves = await self._rows(
            select(jobs, *session_columns())
            .join_from(jobs, sessions)
            .where(jobs.c.batch == row["number"])
            .order_by(jobs.c.place)
        )
        return batch_of(row), [
            LeafRecord(signed_of(leaf), leaf["salt"], session_of(leaf, "s_").key, job_of(leaf), leaf["emitted"])
            for leaf in leaves
        ]

    async def expired(self, posted_before: int, ended_before: int) -> list[bytes]:
        """Jobs whose evidence nobody can ask for any more: their batch was posted before a chain time, they ended
        without a batch in an epoch before `ended_before`, or they ended without a commitment.
        """
        rows = await self._rows(
            select(jobs.c.job_id)
            .outerjoin_from(jobs, batches, jobs.c.batch == batches.c.number)
            .where(
                or_(
                    and_(batches.c.status == "posted", batches.c.posted_at < posted_before),
                    and_(jobs.c.late == 1, jobs.c.epoch < ended_before),
                    and_(jobs.c.status.in_(("aborted", "cancelled")), jobs.c.late == 0),
                )
            )
            .limit(1000)
        )
        return [row["job_id"] for row in rows]

    async def forget(self, job_ids: Sequence[bytes]) -> None:
        """Drop the evidence of jobs. Their ids stay taken and their receipts can still be read."""
        await self._write(
            delete(envelopes).where(envelopes.c.job_id.in_(job_ids)),
            update(jobs)
            .where(jobs.c.job_id.in_(job_ids))
            .values(batch=None, late=2, in_root=None, out_root=None, prompt=None),
        )

    # --- what this file knows all of ---

    async def origin(self, network: str) -> OriginRecord | None:
        """From where on this file knows all that was signed for a network; None when it was never used there."""
        row = await self._first(select(origins).where(origins.c.network == network))
        return None if row is None else OriginRecord(row["block"], row["file"])

    async def set_origin(self, network: str, record: OriginRecord) -> None:
        """Replace it."""
        values = {"block": record.block, "file": record.file}
        await self._write(
            upsert(origins)
            .values(network=network, **values)
            .on_conflict_do_update(index_elements=["network"], set_=values)
        )

    async def next_seq(self) -> int:
        """Number of the next batch, as far as this file knows."""
        row = await self._first(select(func.max(batches.c.seq).label("seq")))
        return 0 if row is None or row["seq"] is None else int(row["seq"]) + 1

    # --- rewards ---

    async def reward(self, epoch: int) -> tuple[bool, bool]:
        """(weighed, claimed) of an epoch."""
        row = await self._first(select(rewards).where(rewards.c.epoch == epoch))
        return (False, False) if row is None else (bool(row["weighed"]), bool(row["claimed"]))

    async def mark_reward(self, epoch: int, **values: int) -> None:
        """Set weighed=1 or claimed=1 of an epoch."""
        await self._write(
            upsert(rewards).values(epoch=epoch, **values).on_conflict_do_update(index_elements=["epoch"], set_=values)
        )
