"""The client's store: nothing promised is forgotten, whatever kills the process."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from efedllm.commitments.session import Voucher
from efedllm.errors import ConfigError
from efedllm.wire.messages import VoucherMsg
from efedllm_client.payments.store import OPEN, OPENING, ClientStore, StoredSession

SESSION = bytes([7]) * 32


def session(session_id: bytes = SESSION, status: str = OPEN) -> StoredSession:
    return StoredSession(session_id, 1337, "0xEscrow", "0xClient", "{}", 100, 10**24, status, 0, 0)


def voucher(cumulative: int, tokens: int, session_id: bytes = SESSION) -> VoucherMsg:
    return VoucherMsg(Voucher(session_id, cumulative, tokens, bytes(32)), bytes([cumulative % 251]) * 65)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ClientStore]:
    opened = await ClientStore.at(tmp_path / "client.db")
    await opened.add_session(session())
    yield opened
    await opened.close()


async def test_the_last_voucher_survives_reopening_and_amounts_exceed_64_bits(
    store: ClientStore, tmp_path: Path
) -> None:
    assert await store.last_voucher(SESSION) is None
    small, large = voucher(9 * 10**18, 5), voucher(10**30, 6)
    await store.save_voucher(small)
    await store.save_voucher(large)
    again = await ClientStore.at(tmp_path / "client.db")
    assert await again.last_voucher(SESSION) == large
    assert (await again.session(SESSION)).deposit == 10**24
    await again.close()


async def test_a_voucher_never_decreases(store: ClientStore) -> None:
    await store.save_voucher(voucher(100, 10))
    await store.save_voucher(voucher(100, 10))
    for worse in (voucher(99, 11), voucher(100, 9)):
        with pytest.raises(ConfigError) as caught:
            await store.save_voucher(worse)
        assert caught.value.code == "voucher-regression"
    assert await store.last_voucher(SESSION) == voucher(100, 10)


async def test_a_voucher_belongs_to_one_session(store: ClientStore) -> None:
    other = bytes([8]) * 32
    with pytest.raises(ConfigError) as caught:
        await store.save_voucher(voucher(1, 1, other))
    assert caught.value.code == "unknown-session"
    await store.add_session(session(other, OPENING))
    await store.save_voucher(voucher(50, 5))
    assert await store.last_voucher(other) is None


async def test_job_numbers_are_never_given_twice(store: ClientStore, tmp_path: Path) -> None:
    second = await ClientStore.at(tmp_path / "client.db")
    numbers = await asyncio.gather(*[s.take_job(SESSION) for s in (store, second) * 10])
    assert sorted(numbers) == list(range(20))
    await second.close()


async def test_billed_tokens_only_grow_and_an_unfinished_job_shows(store: ClientStore) -> None:
    for tokens, expected in ((5, 5), (3, 5), (9, 9)):
        await store.take_job(SESSION)
        assert (await store.session(SESSION)).in_job
        await store.end_job(SESSION, tokens)
        after = await store.session(SESSION)
        assert (after.billed_tokens, after.in_job) == (expected, False)


async def test_sessions_are_listed_per_wallet_and_network(store: ClientStore) -> None:
    assert [s.session_id for s in await store.sessions("0xClient", "0xEscrow", 1337)] == [SESSION]
    assert await store.sessions("0xOther", "0xEscrow", 1337) == []
    assert await store.sessions("0xClient", "0xEscrow", 1) == []


@pytest.mark.usefixtures("store")
def test_the_file_is_private(tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "client.db").stat().st_mode) == 0o600


WRITER = """
import asyncio, sys
from pathlib import Path
from efedllm.commitments.session import Voucher
from efedllm.wire.messages import VoucherMsg
from efedllm_client.payments.store import ClientStore

async def main() -> None:
    store = await ClientStore.at(Path(sys.argv[1]))
    for n in range(1, 100_000):
        job = await store.take_job(bytes([7]) * 32)
        voucher = Voucher(bytes([7]) * 32, n * 10**20, n, bytes(32))
        await store.save_voucher(VoucherMsg(voucher, bytes(65)))
        print(n, job, flush=True)  # stands for sending it

asyncio.run(main())
"""


def write_until_killed(path: Path) -> int:
    """Vouchers that the writer reported as sent before SIGKILL."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(25)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.readlines()
    process.wait()
    return max(int(line.split()[0]) for line in lines if line.endswith("\n"))


async def test_what_was_sent_before_a_kill_is_in_the_store(store: ClientStore, tmp_path: Path) -> None:
    sent = await asyncio.to_thread(write_until_killed, tmp_path / "client.db")
    last = await store.last_voucher(SESSION)
    assert last is not None
    assert last.voucher.tokens >= sent >= 25
    assert await store.take_job(SESSION) >= sent
