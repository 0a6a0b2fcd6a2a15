"""What a client must not lose: its sessions, the last voucher of each, the job numbers used up. SQLite by default."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Dialect, Integer, String, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from efedllm.errors import ConfigError
from efedllm.storage import open_sqlite

OPENING, OPEN, CLOSED = "opening", "open", "closed"


class Wei(TypeDecorator[int]):
    """uint128 as zero-padded decimal text: SQLite integers end at 2**63, and padded text still sorts by value."""

    impl = String(39)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else f"{value:039d}"

    def process_result_value(self, value: Any | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        return None if value is None else int(value)


class Base(DeclarativeBase):
    pass


class SessionRow(Base):
    __tablename__ = "client_sessions"

    session_id: Mapped[str] = mapped_column(String(64), primary_key=True)  # hex
    chain_id: Mapped[int] = mapped_column(Integer)
    escrow: Mapped[str] = mapped_column(String(42))
    client: Mapped[str] = mapped_column(String(42), index=True)
    key_json: Mapped[str] = mapped_column(String)  # the SessionKey
    price: Mapped[int] = mapped_column(Integer)  # gwei per 1000 tokens, whole route
    deposit: Mapped[int] = mapped_column(Wei)
    status: Mapped[str] = mapped_column(String(8))
    billed_tokens: Mapped[int] = mapped_column(Integer, default=0)
    next_job: Mapped[int] = mapped_column(Integer, default=0)
    in_job: Mapped[bool] = mapped_column(default=False)  # a job was started and not yet accounted for
    created: Mapped[float] = mapped_column()


class VoucherRow(Base):
    __tablename__ = "client_vouchers"

    session_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    cumulative: Mapped[int] = mapped_column(Wei, primary_key=True)
    tokens: Mapped[int] = mapped_column(Integer, primary_key=True)
    receipts_root: Mapped[str] = mapped_column(String(64), primary_key=True)
    signature: Mapped[str] = mapped_column(String(130))
    created: Mapped[float] = mapped_column()


@dataclass(frozen=True)
class StoredSession:
    session_id: bytes
    chain_id: int
    escrow: str
    client: str
    key_json: str
    price: int
    deposit: int
    status: str
    billed_tokens: int = 0
    next_job: int = 0
    in_job: bool = False


@dataclass(frozen=True)
class StoredVoucher:
    session_id: bytes
    cumulative: int
    tokens: int
    receipts_root: bytes
    signature: bytes


class Store:
    """Async access; every method is one transaction, on disk when it returns."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @classmethod
    async def at(cls, path: Path) -> Store:
        """The SQLite store in file `path`, made with mode 0600 when missing."""
        await asyncio.to_thread(_make_private, path)
        engine = open_sqlite(path)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        return cls(engine)

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        async with self._engine.begin() as connection:
            yield connection

    async def add_session(self, session: StoredSession) -> None:
        """Record a session before it is opened on chain, so that a crash in between loses no deposit."""
        async with self._transaction() as db:
            await db.execute(
                SessionRow.__table__.insert().values(  # type: ignore[attr-defined]
                    session_id=session.session_id.hex(),
                    chain_id=session.chain_id,
                    escrow=session.escrow,
                    client=session.client,
                    key_json=session.key_json,
                    price=session.price,
                    deposit=session.deposit,
                    status=session.status,
                    billed_tokens=session.billed_tokens,
                    next_job=session.next_job,
                    in_job=session.in_job,
                    created=time.time(),
                )
            )

    async def set_session(self, session_id: bytes, status: str, deposit: int | None = None) -> None:
        values: dict[str, object] = {"status": status}
        if deposit is not None:
            values["deposit"] = deposit
        async with self._transaction() as db:
            await db.execute(update(SessionRow).where(SessionRow.session_id == session_id.hex()).values(**values))

    async def sessions(self, client: str, escrow: str, chain_id: int) -> list[StoredSession]:
        """Sessions of one wallet on one network, newest first."""
        query = (
            select(SessionRow.__table__)
            .where(SessionRow.client == client, SessionRow.escrow == escrow, SessionRow.chain_id == chain_id)
            .order_by(SessionRow.created.desc())
        )
        async with self._transaction() as db:
            return [_session(row) for row in (await db.execute(query)).mappings()]

    async def session(self, session_id: bytes) -> StoredSession:
        """One session. Raises ConfigError "unknown-session"."""
        query = select(SessionRow.__table__).where(SessionRow.session_id == session_id.hex())
        async with self._transaction() as db:
            row = (await db.execute(query)).mappings().one_or_none()
        if row is None:
            raise _unknown(session_id)
        return _session(row)

    async def take_job(self, session_id: bytes) -> int:
        """The next job number of a session; never given twice, not even after a crash."""
        async with self._transaction() as db:
            number = await db.scalar(select(SessionRow.next_job).where(SessionRow.session_id == session_id.hex()))
            if number is None:
                raise _unknown(session_id)
            await db.execute(
                update(SessionRow)
                .where(SessionRow.session_id == session_id.hex())
                .values(next_job=number + 1, in_job=True)
            )
        return number

    async def end_job(self, session_id: bytes, billed_tokens: int) -> None:
        """Account for the job that `take_job` started. `billed_tokens`: of the whole session; never lowered."""
        here = SessionRow.session_id == session_id.hex()
        async with self._transaction() as db:
            await db.execute(
                update(SessionRow)
                .where(here, SessionRow.billed_tokens < billed_tokens)
                .values(billed_tokens=billed_tokens)
            )
            await db.execute(update(SessionRow).where(here).values(in_job=False))

    async def last_voucher(self, session_id: bytes) -> StoredVoucher | None:
        """The voucher worth most. Nodes hold at most this one."""
        async with self._transaction() as db:
            return await _last_voucher(db, session_id)

    async def save_voucher(self, voucher: StoredVoucher) -> None:
        """Keep a voucher before it is sent.

        Raises ConfigError "voucher-regression" when it promises less than an earlier one of its session: somebody else
        uses the session, or the file was restored from an old copy. "unknown-session" when the store lacks the session.
        """
        async with self._transaction() as db:
            known = await db.scalar(
                select(func.count()).where(SessionRow.session_id == voucher.session_id.hex()).select_from(SessionRow)
            )
            if not known:
                raise _unknown(voucher.session_id)
            last = await _last_voucher(db, voucher.session_id)
            if last is not None and (voucher.cumulative, voucher.tokens) < (last.cumulative, last.tokens):
                raise ConfigError(
                    "voucher-regression",
                    f"A voucher of {voucher.cumulative} wei cannot follow one of {last.cumulative} wei.",
                    "Use a new session (--new-session): this one was used from elsewhere.",
                )
            if last == voucher:
                return
            await db.execute(
                VoucherRow.__table__.insert().values(  # type: ignore[attr-defined]
                    session_id=voucher.session_id.hex(),
                    cumulative=voucher.cumulative,
                    tokens=voucher.tokens,
                    receipts_root=voucher.receipts_root.hex(),
                    signature=voucher.signature.hex(),
                    created=time.time(),
                )
            )


async def _last_voucher(db: AsyncConnection, session_id: bytes) -> StoredVoucher | None:
    query = (
        select(VoucherRow.__table__)
        .where(VoucherRow.session_id == session_id.hex())
        .order_by(VoucherRow.cumulative.desc(), VoucherRow.tokens.desc(), VoucherRow.created.desc())
        .limit(1)
    )
    row = (await db.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    return StoredVoucher(
        session_id=session_id,
        cumulative=row["cumulative"],
        tokens=row["tokens"],
        receipts_root=bytes.fromhex(row["receipts_root"]),
        signature=bytes.fromhex(row["signature"]),
    )


def _session(row: Any) -> StoredSession:
    return StoredSession(
        session_id=bytes.fromhex(row["session_id"]),
        chain_id=row["chain_id"],
        escrow=row["escrow"],
        client=row["client"],
        key_json=row["key_json"],
        price=row["price"],
        deposit=row["deposit"],
        status=row["status"],
        billed_tokens=row["billed_tokens"],
        next_job=row["next_job"],
        in_job=row["in_job"],
    )


def _unknown(session_id: bytes) -> ConfigError:
    return ConfigError(
        "unknown-session",
        f"Session 0x{session_id.hex()} is not in this client's store.",
        "Use the home directory (--home) that opened it.",
    )


def _make_private(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600, exist_ok=True)
