"""The client's SQLite database: its sessions, their vouchers, and the job numbers used up."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Dialect,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.types import TypeDecorator

from efedllm.commitments.session import Voucher
from efedllm.errors import ConfigError
from efedllm.storage import for_reading, open_sqlite
from efedllm.wire.messages import VoucherMsg

OPENING, OPEN, CLOSED = "opening", "open", "closed"


class _Wei(TypeDecorator[int]):
    """uint128 as zero-padded decimal text: SQLite integers end at 2**63, and padded text sorts by value."""

    impl = String(39)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else f"{value:039d}"

    def process_result_value(self, value: Any | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        return None if value is None else int(value)


_METADATA = MetaData()

_SESSIONS = Table(
    "client_sessions",
    _METADATA,
    Column("session_id", String(64), primary_key=True),  # hex, as every hash below
    Column("chain_id", Integer, nullable=False),
    Column("escrow", String(42), nullable=False),
    Column("client", String(42), nullable=False, index=True),
    Column("key_json", String, nullable=False),  # the SessionKey
    Column("price", Integer, nullable=False),  # gwei per 1000 tokens, whole route
    Column("deposit", _Wei, nullable=False),
    Column("status", String(8), nullable=False),
    Column("billed_tokens", Integer, nullable=False, default=0),
    Column("next_job", Integer, nullable=False, default=0),
    Column("in_job", Boolean, nullable=False, default=False),  # a job started and is not accounted for
    Column("created", Float, nullable=False),  # Unix seconds of this machine, for the order only
)

_VOUCHERS = Table(
    "client_vouchers",
    _METADATA,
    Column("session_id", String(64), primary_key=True),
    Column("cumulative", _Wei, primary_key=True),
    Column("tokens", Integer, primary_key=True),
    Column("receipts_root", String(64), primary_key=True),
    Column("signature", String(130), nullable=False),
    Column("created", Float, nullable=False),
)


@dataclass(frozen=True)
class StoredSession:
    """One row of the session table. `price`: gwei per 1000 tokens of the whole route; `deposit`: wei."""

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


class ClientStore:
    """Async access. Every method is one transaction, which is on disk when the method returns."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @classmethod
    async def at(cls, path: Path) -> ClientStore:
        """The SQLite store in file `path`, made with mode 0600 when missing."""
        await asyncio.to_thread(_make_private, path)
        engine = open_sqlite(path)
        async with engine.begin() as connection:
            await connection.run_sync(_METADATA.create_all)
        return cls(engine)

    async def close(self) -> None:
        await self._engine.dispose()

    async def add_session(self, session: StoredSession) -> None:
        """Record a session before it is opened on chain, so that a crash in between loses no deposit."""
        values = asdict(session) | {"session_id": session.session_id.hex(), "created": time.time()}
        async with self._engine.begin() as db:
            await db.execute(insert(_SESSIONS).values(values))

    async def set_session(self, session_id: bytes, status: str, deposit: int | None = None) -> None:
        """Change the status of a session, and its deposit (wei) unless None."""
        values: dict[str, object] = {"status": status}
        if deposit is not None:
            values["deposit"] = deposit
        async with self._engine.begin() as db:
            await db.execute(update(_SESSIONS).where(_SESSIONS.c.session_id == session_id.hex()).values(**values))

    async def sessions(self, client: str, escrow: str, chain_id: int) -> list[StoredSession]:
        """Sessions of one wallet on one network, newest first."""
        columns = _SESSIONS.c
        query = (
            select(_SESSIONS)
            .where(columns.client == client, columns.escrow == escrow, columns.chain_id == chain_id)
            .order_by(columns.created.desc())
        )
        async with for_reading(self._engine).begin() as db:
            return [_session(row) for row in (await db.execute(query)).mappings()]

    async def session(self, session_id: bytes) -> StoredSession:
        """One session. Raises ConfigError "unknown-session"."""
        query = select(_SESSIONS).where(_SESSIONS.c.session_id == session_id.hex())
        async with for_reading(self._engine).begin() as db:
            row = (await db.execute(query)).mappings().one_or_none()
        if row is None:
            raise _unknown(session_id)
        return _session(row)

    async def take_job(self, session_id: bytes) -> int:
        """The next job number of a session. No number is given twice, not even after a crash."""
        here = _SESSIONS.c.session_id == session_id.hex()
        async with self._engine.begin() as db:
            number = await db.scalar(select(_SESSIONS.c.next_job).where(here))
            if number is None:
                raise _unknown(session_id)
            await db.execute(update(_SESSIONS).where(here).values(next_job=number + 1, in_job=True))
        return int(number)

    async def end_job(self, session_id: bytes, billed_tokens: int) -> None:
        """Account for the job that `take_job` started. `billed_tokens`: of the whole session; never lowered."""
        here = _SESSIONS.c.session_id == session_id.hex()
        async with self._engine.begin() as db:
            await db.execute(
                update(_SESSIONS)
                .where(here, _SESSIONS.c.billed_tokens < billed_tokens)
                .values(billed_tokens=billed_tokens)
            )
            await db.execute(update(_SESSIONS).where(here).values(in_job=False))

    async def last_voucher(self, session_id: bytes) -> VoucherMsg | None:
        """The voucher worth most. Nodes hold at most this one."""
        async with for_reading(self._engine).begin() as db:
            return await _last_voucher(db, session_id)

    async def save_voucher(self, signed: VoucherMsg) -> None:
        """Keep a voucher before it is sent.

        Raises ConfigError "unknown-session" when the store lacks the session, "voucher-regression" when the voucher
        promises less than an earlier one of its session: somebody else uses the session, or the file was restored from
        an old copy.
        """
        voucher = signed.voucher
        async with self._engine.begin() as db:
            here = _SESSIONS.c.session_id == voucher.session_id.hex()
            if not await db.scalar(select(func.count()).where(here).select_from(_SESSIONS)):
                raise _unknown(voucher.session_id)
            last = await _last_voucher(db, voucher.session_id)
            if last is not None and (voucher.cumulative, voucher.tokens) < (
                last.voucher.cumulative,
                last.voucher.tokens,
            ):
                raise ConfigError(
                    "voucher-regression",
                    f"A voucher of {voucher.cumulative} wei cannot follow one of {last.voucher.cumulative} wei.",
                    "Use a new session (--new-session): this one was used from elsewhere.",
                )
            if last == signed:
                return
            await db.execute(
                insert(_VOUCHERS).values(
                    session_id=voucher.session_id.hex(),
                    cumulative=voucher.cumulative,
                    tokens=voucher.tokens,
                    receipts_root=voucher.receipts_root.hex(),
                    signature=signed.signature.hex(),
                    created=time.time(),
                )
            )


async def _last_voucher(db: AsyncConnection, session_id: bytes) -> VoucherMsg | None:
    columns = _VOUCHERS.c
    query = (
        select(_VOUCHERS)
        .where(columns.session_id == session_id.hex())
        .order_by(columns.cumulative.desc(), columns.tokens.desc(), columns.created.desc())
        .limit(1)
    )
    row = (await db.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    voucher = Voucher(session_id, row["cumulative"], row["tokens"], bytes.fromhex(row["receipts_root"]))
    return VoucherMsg(voucher, bytes.fromhex(row["signature"]))


def _session(row: Any) -> StoredSession:
    values = {name: value for name, value in row.items() if name != "created"}
    return StoredSession(**values | {"session_id": bytes.fromhex(values["session_id"])})


def _unknown(session_id: bytes) -> ConfigError:
    return ConfigError(
        "unknown-session",
        f"Session 0x{session_id.hex()} is not in this client's store.",
        "Use the home directory (--home) that opened it.",
    )


def _make_private(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600, exist_ok=True)


@contextmanager
def session_lock(directory: Path, session_id: bytes) -> Iterator[bool]:
    """Use a session exclusively while the block runs; yields False at once when another process uses it.

    `directory`: the client's folder. The lock ends with its process.
    """
    path = directory / "locks" / f"{session_id.hex()}.lock"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
