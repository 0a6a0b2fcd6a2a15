"""What of canaries must survive the process: consents, and how far their opening has come."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import and_, func, or_, select
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.ext.asyncio import AsyncEngine

from efedllm.commitments.leaves import hop_leaf
from efedllm.commitments.messages import HopCommit, JobSpec, SessionKey
from efedllm_node.storage.records import CanaryRecord
from efedllm_node.storage.tables import batches, canaries, jobs, openings, sessions


@dataclass(frozen=True)
class PostedCanary:
    """A committed job with a client's consent, and its place in a batch on chain.

    leaves: all hop leaves of that batch, in order; `index`: of this one among them.
    """

    commit: HopCommit
    job_seq: int
    key: SessionKey
    canary: CanaryRecord
    salt: bytes
    seq: int
    index: int
    leaves: tuple[bytes, ...]

    @property
    def leaf(self) -> bytes:
        return self.leaves[self.index]


@dataclass(frozen=True)
class OpeningRecord:
    """How the opening of an epoch's canaries stands. ended: "opened", "unsampled" or "missed", None while it may go on;
    failures: transactions that the chain refused.
    """

    ended: str | None = None
    failures: int = 0


class CanaryStore:
    """Every method is one transaction: after it returns, a crash loses nothing of it. Consents are kept with their
    jobs, by `store.Store.add_job`.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def live(self, epoch: int) -> int:
        """Canaries that are running, or whose leaf stands or may yet stand in a batch of `epoch` or a later one."""
        waiting = and_(jobs.c.status == "done", jobs.c.batch.is_(None), jobs.c.late == 0)
        query = (
            select(func.count())
            .select_from(canaries)
            .join(jobs, jobs.c.job_id == canaries.c.job_id)
            .outerjoin(batches, jobs.c.batch == batches.c.number)
            .where(or_(jobs.c.status == "open", waiting, batches.c.epoch >= epoch))
        )
        async with self._engine.connect() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def posted(self, epoch: int) -> tuple[PostedCanary, ...]:
        """Jobs with a consent in batches of `epoch` that are on chain."""
        query = (
            select(
                *(jobs.c[name] for name in ("batch", "place", "spec_json", "commit_json", "salt")),
                *(canaries.c.consent, canaries.c.nonce, batches.c.seq, sessions.c.key_json),
            )
            .select_from(canaries)
            .join(jobs, jobs.c.job_id == canaries.c.job_id)
            .join(batches, jobs.c.batch == batches.c.number)
            .join(sessions, sessions.c.session_id == jobs.c.session_id)
            .where(and_(batches.c.epoch == epoch, batches.c.status == "posted"))
            .order_by(jobs.c.number)
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).mappings().all()
            numbers = {row["batch"] for row in rows}
            mates = select(jobs.c.batch, jobs.c.commit_digest, jobs.c.salt).where(jobs.c.batch.in_(numbers))
            found = (await connection.execute(mates.order_by(jobs.c.place))).all() if numbers else []
        leaves: dict[int, list[bytes]] = {number: [] for number in numbers}
        for number, digest, salt in found:
            leaves[number].append(hop_leaf(digest, salt))
        return tuple(
            PostedCanary(
                commit=HopCommit.from_json(json.loads(row["commit_json"])),
                job_seq=JobSpec.from_json(json.loads(row["spec_json"])).job_seq,
                key=SessionKey.from_json(json.loads(row["key_json"])),
                canary=CanaryRecord(row["consent"], row["nonce"]),
                salt=row["salt"],
                seq=row["seq"],
                index=row["place"],
                leaves=tuple(leaves[row["batch"]]),
            )
            for row in rows
        )

    async def opening(self, epoch: int) -> OpeningRecord:
        """How the opening of an epoch's canaries stands."""
        query = select(openings.c.ended, openings.c.failures).where(openings.c.epoch == epoch)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return OpeningRecord() if row is None else OpeningRecord(row.ended, row.failures)

    async def keep_opening(self, epoch: int, record: OpeningRecord) -> None:
        """Replace what is kept of an epoch."""
        values = {"ended": record.ended, "failures": record.failures}
        query = upsert(openings).values(epoch=epoch, **values)
        async with self._engine.begin() as connection:
            await connection.execute(query.on_conflict_do_update(index_elements=["epoch"], set_=values))
