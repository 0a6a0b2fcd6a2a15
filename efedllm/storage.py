"""SQLite databases whose committed transactions survive a kill and a power cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

# busy_timeout (milliseconds) comes first: the change to WAL may already have to wait for another process.
_PRAGMAS = ("busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
_READ_ONLY = "efedllm_read_only"


def open_sqlite(path: Path) -> AsyncEngine:
    """The database file at `path`, which is made when missing. Its folder must exist. Dispose of the engine at the end.

    Several processes may use one file. A transaction takes the write lock when it begins, so that what it reads cannot
    change before it writes; it waits up to 10 s for the lock, then raises sqlalchemy.exc.OperationalError.
    """
    engine = create_async_engine(URL.create("sqlite+aiosqlite", database=str(path)))

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # else the driver begins transactions by itself, without the lock
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get(_READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def for_reading(engine: AsyncEngine) -> AsyncEngine:
    """The same connections for transactions that only read: they neither take the write lock nor wait for it."""
    return engine.execution_options(**{_READ_ONLY: True})
