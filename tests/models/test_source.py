"""Fetching by hash over real HTTP servers that are slow to finish, wrong, partial or gone."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from efedllm.errors import ModelError
from efedllm.models.manifest import Manifest
from efedllm.models.source import WeightSource, fetch_published, open_published

BIG = "embed.safetensors"


@dataclass
class Mirror:
    """An HTTP server over a directory, with faults to switch on."""

    directory: Path
    url: str = ""
    ranges: bool = True
    cut_after: dict[str, int] = field(default_factory=dict)  # bytes sent before the connection drops, once per file
    spoiled: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    dripping: set[str] = field(default_factory=set)  # one byte after the other, for ever
    extra: int = 0
    delivered: asyncio.Event = field(default_factory=asyncio.Event)  # set by a test once the bytes before a cut arrived
    served: list[tuple[str, int]] = field(default_factory=list)  # (file, first byte asked for)

    async def manifest(self, request: web.Request) -> web.StreamResponse:
        if "manifest.json" in self.dripping:
            response = web.StreamResponse()
            await response.prepare(request)
            await self.drip(response)
        return web.FileResponse(self.directory / "manifest.json")

    async def drip(self, response: web.StreamResponse) -> None:
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        path = self.directory / name
        if name in self.missing or not path.is_file():
            raise web.HTTPNotFound
        data = bytearray(path.read_bytes()) + bytes(self.extra)
        if name in self.spoiled:
            data[-1] ^= 1
        start = 0
        asked = request.headers.get("Range", "")
        self.served.append((name, int(asked.removeprefix("bytes=").rstrip("-") or 0)))
        if self.ranges and asked:
            start = self.served[-1][1]
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(data) - start
        await response.prepare(request)
        if name in self.dripping:
            await self.drip(response)
        cut = self.cut_after.pop(name, None)
        if cut is None:
            await response.write(bytes(data[start:]))
            await response.write_eof()
            return response
        await response.write(bytes(data[start : start + cut]))
        await asyncio.wait_for(self.delivered.wait(), 10)
        assert request.transport is not None
        request.transport.close()
        return response


MakeMirror = Callable[..., Awaitable[Mirror]]


@pytest_asyncio.fixture
async def mirror(model: Path) -> AsyncIterator[MakeMirror]:
    runners: list[web.AppRunner] = []

    async def make(prefix: str = "", base: str = "") -> Mirror:
        made = Mirror(model)
        app = web.Application()
        app.router.add_get(f"{base}/manifest.json", made.manifest)
        app.router.add_get(f"{base}{prefix}/{{name}}", made.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        made.url = f"http://{host}:{port}{base}"
        return made

    yield make
    for runner in runners:
        await runner.cleanup()


def _glob(directory: Path, pattern: str) -> list[Path]:
    return list(directory.glob(pattern))


@pytest.fixture(scope="module")
def model(published: Callable[..., Path]) -> Path:
    return published("llama", 0.5, "int8")


@pytest.fixture
def manifest(model: Path) -> Manifest:
    return Manifest.load(model)


async def test_a_node_fetches_its_range_over_http(mirror: MakeMirror, manifest: Manifest, tmp_path: Path) -> None:
    server = await mirror()
    seen: list[tuple[int, int, str]] = []
    got = await fetch_published([server.url], tmp_path, manifest.root, 0, 3, lambda *report: seen.append(report))
    assert got == manifest
    assert {p.name for p in _glob(tmp_path, "*")} == {"manifest.json", *manifest.files_for(0, 3)}
    total = sum(manifest.file(name).size for name in manifest.files_for(0, 3))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][:2] == (total, total)


async def test_another_node_is_a_source(mirror: MakeMirror, manifest: Manifest, tmp_path: Path) -> None:
    server = await mirror(prefix="/files", base="/v1/model")
    await fetch_published([server.url], tmp_path, manifest.root, 6, 8)
    assert open_published(tmp_path, manifest.root, 6, 8) == manifest


async def test_what_is_there_is_not_fetched_again(mirror: MakeMirror, manifest: Manifest, tmp_path: Path) -> None:
    server = await mirror()
    await fetch_published([server.url], tmp_path, manifest.root, 0, 2)
    server.served.clear()
    await fetch_published([server.url], tmp_path, manifest.root, 0, 3)
    assert [name for name, _ in server.served] == ["layer-0002.safetensors"]


async def test_a_dropped_connection_is_continued(mirror: MakeMirror, manifest: Manifest, tmp_path: Path) -> None:
    server = await mirror()
    server.cut_after[BIG] = 1000
    before = manifest.file("config.json").size

    def progress(done: int, _total: int, name: str) -> None:
        if name == BIG and done > before:
            server.delivered.set()

    await fetch_published([server.url], tmp_path, manifest.root, 0, 1, progress)
    assert [start for name, start in server.served if name == BIG] == [0, 1000]


async def test_an_interrupted_fetch_is_continued_by_the_next(
    mirror: MakeMirror, model: Path, manifest: Manifest, tmp_path: Path
) -> None:
    (tmp_path / f"{BIG}.part").write_bytes((model / BIG).read_bytes()[:777])
    server = await mirror()
    await fetch_published([server.url], tmp_path, manifest.root, 0, 1)
    assert [start for name, start in server.served if name == BIG] == [777]
    assert not _glob(tmp_path, "*.part")


async def test_a_server_without_ranges_sends_it_all_again(
    mirror: MakeMirror, manifest: Manifest, tmp_path: Path
) -> None:
    server = await mirror()
    server.ranges = False
    server.cut_after[BIG] = 1000
    server.delivered.set()
    await fetch_published([server.url], tmp_path, manifest.root, 0, 1)
    assert open_published(tmp_path, manifest.root, 0, 1) == manifest


async def test_a_part_of_something_else_is_started_over(mirror: MakeMirror, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / f"{BIG}.part").write_bytes(b"x" * 500)
    server = await mirror()
    await fetch_published([server.url], tmp_path, manifest.root, 0, 1)
    assert [start for name, start in server.served if name == BIG] == [500, 0]


async def test_wrong_bytes_send_it_to_the_next_source(mirror: MakeMirror, manifest: Manifest, tmp_path: Path) -> None:
    bad, good = await mirror(), await mirror()
    bad.spoiled.add(BIG)
    bad.missing.add("layer-0000.safetensors")
    await fetch_published([bad.url, good.url], tmp_path, manifest.root, 0, 1)
    assert [name for name, _ in good.served] == [BIG, "layer-0000.safetensors"]


async def test_a_gone_source_is_passed_over(
    mirror: MakeMirror, manifest: Manifest, model: Path, tmp_path: Path
) -> None:
    server = await mirror()
    gone = "http://127.0.0.1:9"
    await fetch_published([gone, server.url], tmp_path / "a", manifest.root, 0, 1)
    await fetch_published([gone, model], tmp_path / "b", manifest.root, 0, 1)
    with pytest.raises(ModelError) as caught:
        await fetch_published([gone], tmp_path / "c", manifest.root, 0, 1)
    assert caught.value.code == "source-unreachable"


async def test_only_wrong_bytes_are_an_error_and_leave_nothing(
    mirror: MakeMirror, manifest: Manifest, tmp_path: Path
) -> None:
    server, empty = await mirror(), await mirror()
    server.spoiled.add(BIG)
    empty.missing.add(BIG)
    with pytest.raises(ModelError, match=BIG) as caught:
        await fetch_published([server.url, empty.url], tmp_path, manifest.root, 0, 1)
    assert caught.value.code == "corrupt-weights"
    assert not _glob(tmp_path, f"{BIG}*")


async def test_a_file_that_does_not_end_is_cut_off(mirror: MakeMirror, manifest: Manifest, tmp_path: Path) -> None:
    server = await mirror()
    server.extra = 1 << 20
    with pytest.raises(ModelError) as caught:
        await fetch_published([server.url], tmp_path, manifest.root, 0, 1)
    assert caught.value.code == "corrupt-weights"
    assert not _glob(tmp_path, "*.part")


@pytest.mark.parametrize("name", ["manifest.json", BIG])
async def test_a_source_that_drips_is_left_for_the_next(
    mirror: MakeMirror, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every byte keeps the connection alive: without a least speed it could hold us for ever."""
    monkeypatch.setattr("efedllm.models.source._PATIENCE", 1.0)
    slow, good = await mirror(), await mirror()
    slow.dripping.add(name)
    async with asyncio.timeout(60):
        await fetch_published([slow.url, good.url], tmp_path, manifest.root, 0, 1)
    assert open_published(tmp_path, manifest.root, 0, 1) == manifest
    if name == BIG:
        # And asked for nothing more.
        assert slow.served[-1][0] == BIG
        assert "layer-0000.safetensors" in dict(good.served)


async def test_a_missing_file_is_named(mirror: MakeMirror, manifest: Manifest, tmp_path: Path) -> None:
    server = await mirror()
    server.missing.add("layer-0000.safetensors")
    with pytest.raises(ModelError, match="layer-0000") as caught:
        await fetch_published([server.url], tmp_path, manifest.root, 0, 1)
    assert caught.value.code == "missing-file"


async def test_the_registered_model_is_found_behind_another(
    mirror: MakeMirror, manifest: Manifest, published: Callable[..., Path], tmp_path: Path
) -> None:
    other, server = published("llama"), await mirror()
    assert await WeightSource([other, server.url]).manifest(manifest.root) == manifest
    with pytest.raises(ModelError) as caught:
        await fetch_published([other], tmp_path, manifest.root, 0, 1)
    assert caught.value.code == "wrong-root"


async def test_a_source_that_is_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as none:
        WeightSource([])
    with pytest.raises(ModelError) as absent:
        await WeightSource([tmp_path / "absent"]).manifest()
    assert (none.value.code, absent.value.code) == ("no-source", "not-published")


async def test_a_place_that_cannot_be_written_is_a_plain_error(
    mirror: MakeMirror, manifest: Manifest, tmp_path: Path
) -> None:
    server = await mirror()
    (tmp_path / f"{BIG}.part").mkdir()
    for dest in (tmp_path, tmp_path / "config.json" / "below"):
        with pytest.raises(ModelError) as caught:
            await fetch_published([server.url], dest, manifest.root, 0, 1)
        assert caught.value.code == "cannot-write"


async def test_a_manifest_that_is_not_the_registered_one_is_refused(
    published: Callable[..., Path], tmp_path: Path
) -> None:
    """Same weights, another limit for the verifiers: the root cannot tell them apart, the hash does."""
    good = published("llama", 0.5, "int8")
    manifest = Manifest.load(good)
    forged = tmp_path / "forged"
    shutil.copytree(good, forged)
    manifest.with_profile("exact", b"\x01" * 32).save(forged)
    assert open_published(forged, manifest.root, 0, 1).profile == "exact"
    with pytest.raises(ModelError) as caught:
        open_published(forged, manifest.root, 0, 1, manifest.hash())
    assert caught.value.code == "wrong-manifest"
    with pytest.raises(ModelError) as caught:
        await fetch_published([forged], tmp_path / "none", manifest.root, 0, 1, expected_hash=manifest.hash())
    assert caught.value.code == "wrong-manifest"
    # The next location has it.
    got = await fetch_published([forged, good], tmp_path / "found", manifest.root, 0, 1, expected_hash=manifest.hash())
    assert got == manifest
    assert Manifest.load(tmp_path / "found") == manifest
