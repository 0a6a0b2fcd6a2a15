"""What a node decides about canaries: which it takes, what it computes instead, when it opens which leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efedllm.chain import ChainTime
from efedllm.commitments.canary import MAX_OPENINGS, Canary, CanaryPlace, canary_place, canary_salt, sample_ppm
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.messages import JobSpec, RouteHop, SessionKey, ids_hash
from efedllm.commitments.signing import Signer
from efedllm.errors import ConfigError, ProtocolError
from efedllm.wire.messages import OpenJobMsg
from efedllm_node.canaries.canary_jobs import CanaryDesk, Exchange, canary_feed, leaf_salt
from efedllm_node.canaries.opener import MOST_FAILURES, End, Open, OpeningView, next_opening
from efedllm_node.canaries.store import CanaryStore, OpeningRecord
from efedllm_node.config import NodeConfig
from efedllm_node.storage.records import CanaryRecord, JobRecord, SessionRecord
from efedllm_node.storage.store import Store

DOMAIN = Domain(1337, "0x" + "11" * 20)
CLIENT, SIGNER = Signer(keccak(b"client")), Signer(keccak(b"session"))
NODES = tuple(Signer(keccak(b"node %d" % i)).address for i in range(2))
PROMPT = (5, 9, 5, 7)
KEY = SessionKey(CLIENT.address, SIGNER.address, ZERO32, 0, 2**39, 1000, NODES, (5000, 5000))
SESSION = KEY.session_id(1337, DOMAIN.contract)


def job(seq: int = 0, canary: CanaryRecord | None = None, prompt: Sequence[int] = PROMPT) -> JobRecord:
    spec = JobSpec(SESSION, seq, ids_hash(list(prompt)), len(prompt), 4, 0, 0, 1_000_000, ZERO32, 1)
    route = tuple(RouteHop(node, node, "http://127.0.0.1:1", i, i + 1) for i, node in enumerate(NODES))
    return JobRecord(spec.job_id, SESSION, 1, 2, spec, bytes(65), route, None, 32, canary)


def asking(seq: int, consent: bytes | None, client: str = CLIENT.address) -> OpenJobMsg:
    record, key = job(seq), replace(KEY, client=client)
    return OpenJobMsg(key, record.spec, bytes(65), None, None, 1, record.route, None, consent)


def consent(seq: int, hop: int = 1, signer: Signer = SIGNER, domain: Domain = DOMAIN) -> bytes:
    return signer.sign(Canary(job(seq).job_id, hop).digest(domain))


async def opened(path: Path) -> tuple[Store, CanaryStore]:
    store = await Store.open(path / "node.sqlite")
    await store.add_session(SessionRecord(SESSION, KEY, 1, 1000, 10, 0, 1))
    return store, CanaryStore(store.engine)


async def refused(desk: CanaryDesk, msg: OpenJobMsg) -> str:
    with pytest.raises(ProtocolError) as caught:
        desk.consent(msg, DOMAIN)
    return caught.value.code


async def test_consents_of_strangers_and_for_other_work_are_refused(tmp_path: Path) -> None:
    store, canaries = await opened(tmp_path)
    desk = CanaryDesk(frozenset({CLIENT.address}), canaries, slashable=True)
    taken = desk.consent(asking(3, consent(3)), DOMAIN)
    assert taken is not None
    assert (taken.consent, len(taken.nonce)) == (consent(3), 32)
    assert desk.consent(asking(3, None), DOMAIN) is None
    # Drawn for each job: a known nonce would make the salt of the leaf guessable.
    assert desk.consent(asking(3, consent(3)), DOMAIN) != taken
    stranger = Signer(keccak(b"stranger")).address
    assert await refused(desk, asking(3, consent(3), stranger)) == "canary-refused"
    nobody = CanaryDesk(frozenset(), canaries, slashable=True)
    assert await refused(nobody, asking(3, consent(3))) == "canary-refused"
    lenient = CanaryDesk(frozenset({CLIENT.address}), canaries, slashable=False)
    assert await refused(lenient, asking(3, consent(3))) == "canary-refused"
    for wrong in (
        consent(4),
        consent(3, hop=0),
        consent(3, signer=CLIENT),
        consent(3, domain=replace(DOMAIN, chain_id=1)),
        bytes(65),
    ):
        assert await refused(desk, asking(3, wrong)) == "bad-signature"
    await store.close()


async def test_no_more_canaries_are_taken_than_an_epoch_forgives(tmp_path: Path) -> None:
    store, canaries = await opened(tmp_path)
    desk = CanaryDesk(frozenset({CLIENT.address}), canaries, slashable=True)

    async def take(seq: int) -> None:
        record = job(seq, CanaryRecord(consent(seq), keccak(b"%d" % seq)))
        async with desk.room(record, 5):
            await store.add_job(record)

    for seq in range(MAX_OPENINGS):
        await take(seq)
    with pytest.raises(ProtocolError) as caught:
        await take(99)
    assert caught.value.code == "canary-refused"
    assert not await store.has_job(job(99).job_id)
    # Ordinary jobs are not counted, and one that ended without a commitment leaves its place.
    async with desk.room(job(100), 5):
        await store.add_job(job(100))
    await store.end_job(job(0).job_id, "cancelled", 0, 0)
    assert await canaries.live(5) == MAX_OPENINGS - 1
    await take(99)
    # What a crash leaves behind is counted by the next process too.
    await store.close()
    again = await Store.open(tmp_path / "node.sqlite")
    assert await CanaryStore(again.engine).live(5) == MAX_OPENINGS
    await again.close()


@pytest.mark.parametrize("address", ["0x12", "nobody", "0x" + "zz" * 20])
def test_a_planter_is_named_by_address(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        NodeConfig("", tmp_path, tmp_path, "", tmp_path, (), canary_clients=(address,))
    assert caught.value.code == "bad-address"


# --- what is computed instead ---


def cut(rows: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return [part for part in np.split(rows, np.cumsum(sizes)[: len(sizes)]) if len(part)]


def fed(exchange: Exchange, parts: list[np.ndarray]) -> np.ndarray:
    found, at = [], 0
    for part in parts:
        given = exchange(at, part)
        # A pass that failed is repeated.
        assert np.array_equal(exchange(at, part), given)
        found.append(given)
        at += len(part)
    return np.concatenate(found)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.data(),
    st.lists(st.integers(0, 5), max_size=5),
    st.integers(0, 2**256 - 1),
)
def test_exactly_one_token_is_another(ids: list[int], data: st.DataObject, sizes: list[int], choice: int) -> None:
    position = data.draw(st.integers(0, len(ids) - 1))
    rows = np.array(ids, dtype=np.int32)
    given = fed(Exchange(CanaryPlace(position, choice), 10), cut(rows, sizes))
    assert given.dtype == np.int32
    assert list(np.flatnonzero(given != rows)) == [position]
    assert 0 <= given[position] < 10
    assert rows.tolist() == ids


@given(st.integers(1, 9), st.data(), st.lists(st.integers(0, 5), max_size=5), st.booleans())
def test_exactly_one_row_is_moved_and_still_nearest_to_the_true_one(
    count: int, data: st.DataObject, sizes: list[int], alike: bool
) -> None:
    position = data.draw(st.integers(0, count - 1))
    generator = np.random.default_rng(count)
    rows = generator.standard_normal((1 if alike else count, 300)).astype(np.float32)
    rows = np.repeat(rows, count, axis=0) if alike else rows
    given = fed(Exchange(CanaryPlace(position, 7 << 240), 10), cut(rows, sizes))
    assert given.dtype == np.float32
    assert list(np.flatnonzero((given != rows).any(axis=1))) == [position]
    true, moved = rows[position], given[position]
    assert 0.02 < np.linalg.norm(moved - true) / np.linalg.norm(true) < 0.5
    # Nothing of another row is in it that could be found without the weights.
    others = [row / np.linalg.norm(row) for row in rows if not np.array_equal(row, true)]
    step = (moved - true) / np.linalg.norm(moved - true)
    assert all(abs(row @ step) < 0.3 for row in others)


def test_an_ordinary_job_is_computed_as_it_is_and_has_a_salt_of_its_own() -> None:
    assert canary_feed(job(), 10) is None
    assert leaf_salt(job(), 7) != leaf_salt(job(), 7)


def test_a_canary_that_ended_before_its_place_is_an_ordinary_job() -> None:
    canary = CanaryRecord(consent(1), keccak(b"nonce"))
    record = job(1, canary)
    # The prompt, and all but the last of the four tokens asked for.
    place = canary_place(canary.consent, canary.nonce, len(PROMPT) + 3)
    salt = canary_salt(record.job_id, 1, canary.consent, canary.nonce)
    assert leaf_salt(record, place.position + 1) == leaf_salt(record, 20) == salt
    assert salt not in {leaf_salt(record, place.position), leaf_salt(record, 0)}


# --- opening ---

SEED = keccak(b"seed")
LEAVES = tuple(sorted(keccak(b"leaf %d" % i) for i in range(12)))
HALF = tuple(leaf for leaf in LEAVES if sample_ppm(SEED, leaf) < 500_000)


def at(epoch: int, fraction: float, length: int = 9000) -> ChainTime:
    return ChainTime(1, 1000 + round(fraction * length), epoch, int(3 * fraction), 1000, length)


def view(epoch: int, fraction: float, **changes: object) -> OpeningView:
    base = OpeningView(5, at(epoch, fraction), LEAVES, True, False, False, SEED, 500_000, OpeningRecord())
    return replace(base, **changes)  # type: ignore[arg-type]


def test_audited_canaries_are_opened_in_the_reveal_phase_and_only_then() -> None:
    assert 0 < len(HALF) < len(LEAVES)
    assert next_opening(view(6, 0.4)) == Open(HALF)
    assert next_opening(view(6, 0.4, leaves=LEAVES[::-1] + LEAVES)) == Open(HALF)
    for epoch, fraction in ((5, 0.0), (5, 0.5), (6, 0.0), (6, 0.32)):
        assert next_opening(view(epoch, fraction)) is None
    for epoch, fraction in ((6, 0.7), (7, 0.0), (9, 0.5)):
        assert next_opening(view(epoch, fraction)) == End("missed")


def test_an_opening_waits_for_the_verifiers_as_long_as_it_can() -> None:
    assert next_opening(view(6, 0.34, awaited=True)) is None
    assert next_opening(view(6, 0.57, awaited=True)) is None
    assert next_opening(view(6, 0.59, awaited=True)) == Open(HALF)
    # In a short phase blocks and transactions take most of it.
    short = replace(view(6, 0.45, awaited=True), time=at(6, 0.45, 60))
    assert next_opening(short) == Open(HALF)


def test_what_was_not_audited_stays_secret() -> None:
    assert next_opening(view(6, 0.4, rate_ppm=0)) == End("unsampled")
    assert next_opening(view(6, 0.4, leaves=())) is None
    assert next_opening(view(6, 0.4, seed=None)) is None
    assert next_opening(view(6, 0.7, seed=None)) == End("unsampled")


def test_an_opening_is_sent_once_and_not_for_ever() -> None:
    # It can be taken back by a reorganisation as long as the phase lasts.
    assert next_opening(view(6, 0.4, opened=True)) is None
    assert next_opening(view(6, 0.7, opened=True)) == End("opened")
    assert next_opening(view(6, 0.4, record=OpeningRecord("opened"))) is None
    assert next_opening(view(6, 0.4, record=OpeningRecord(None, MOST_FAILURES - 1))) == Open(HALF)
    assert next_opening(view(6, 0.4, record=OpeningRecord(None, MOST_FAILURES))) is None
    assert next_opening(view(6, 0.9, record=OpeningRecord(None, MOST_FAILURES))) == End("missed")
    # A batch that may or may not be on chain holds leaves that would be left out.
    assert next_opening(view(6, 0.4, settled=False)) is None
