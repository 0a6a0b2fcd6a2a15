"""Databases on disk: durable settings on every connection, writers that exclude each other, unhindered readers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError

from efedllm.storage import for_reading, open_sqlite


async def test_every_connection_is_durable_and_checks_foreign_keys(tmp_path: Path) -> None:
    engine = open_sqlite(tmp_path / "a.sqlite")
    # Two at once are two connections of the pool.
    async with engine.connect() as first, for_reading(engine).connect() as second:
        for connection in (first, second):
            values = [
                (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
                for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
            ]
            assert values == ["wal", 2, 10_000, 1]
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE parent (id INTEGER PRIMARY KEY)"))
        await connection.execute(text("CREATE TABLE child (id INTEGER REFERENCES parent (id))"))
    with pytest.raises(IntegrityError):
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO child VALUES (1)"))
    await engine.dispose()


async def test_read_and_write_of_a_transaction_are_one_step(tmp_path: Path) -> None:
    """Two engines stand for two processes with the same file."""
    engines = [open_sqlite(tmp_path / "a.sqlite") for _ in range(2)]
    async with engines[0].begin() as connection:
        await connection.execute(text("CREATE TABLE counter (value INTEGER)"))
        await connection.execute(text("INSERT INTO counter VALUES (0)"))

    async def add(number: int) -> None:
        async with engines[number % 2].begin() as connection:
            value = (await connection.execute(text("SELECT value FROM counter"))).scalar_one()
            await asyncio.sleep(0.005)
            await connection.execute(text(f"UPDATE counter SET value = {value + 1}"))

    await asyncio.gather(*(add(number) for number in range(12)))
    async with for_reading(engines[1]).connect() as connection:
        assert (await connection.execute(text("SELECT value FROM counter"))).scalar_one() == 12
    for engine in engines:
        await engine.dispose()


async def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    engine = open_sqlite(tmp_path / "a.sqlite")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE item (value INTEGER)"))
    async with engine.begin() as writer:
        await writer.execute(text("INSERT INTO item VALUES (7)"))
        async with asyncio.timeout(5), for_reading(engine).connect() as reader:
            assert (await reader.execute(text("SELECT count(*) FROM item"))).scalar_one() == 0
    async with for_reading(engine).connect() as reader:
        assert (await reader.execute(text("SELECT value FROM item"))).scalar_one() == 7
    await engine.dispose()


async def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    engine = open_sqlite(tmp_path / "a.sqlite")

    async def fail() -> None:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE item (value INTEGER)"))
            await connection.execute(text("no SQL"))

    with pytest.raises(OperationalError):
        await fail()
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE item (value INTEGER)"))
    await engine.dispose()


async def test_any_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a ?b=1%20#.sqlite"
    engine = open_sqlite(path)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE item (value INTEGER)"))
    await engine.dispose()
    assert await asyncio.to_thread(os.listdir, tmp_path) == [path.name]
