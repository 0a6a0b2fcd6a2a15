"""Reading nodes that are slow, absent, or lie about what they hold."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from aiohttp import web

from efedllm_verifier.fetch import FetchLimits, NodeReader, UnavailableError, base_url

QUICK = FetchLimits(connect=0.5, total=0.5, attempts=3, pause=0.01, memory=60)
ROOT = b"\x07" * 32


@pytest.mark.parametrize(
    ("endpoint", "base"),
    [
        ("http://10.0.0.1:80", "http://10.0.0.1:80"),
        ("http://node.example/", "http://node.example"),
        ("ws://node.example:8/v1/ws", "http://node.example:8"),
        ("wss://node.example/below/", "https://node.example/below"),
        ("http://[::1]:9", "http://[::1]:9"),
        ("http://user:secret@node.example:9", "http://node.example:9"),
        ("file:///etc/passwd", None),
        ("ftp://node.example", None),
        ("http://node.example:notaport", None),
        ("http://", None),
        ("", None),
    ],
)
def test_only_web_endpoints_are_read(endpoint: str, base: str | None) -> None:
    assert base_url(endpoint) == base


@dataclass
class Server:
    """Answers every request with the next of `answers`; the last one stays."""

    answers: list[object]
    url: str = ""
    paths: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path_qs)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == "slow":
            await asyncio.sleep(5)
        if answer == "elsewhere":
            raise web.HTTPFound("/gold")
        if isinstance(answer, int):
            return web.Response(status=answer)
        assert isinstance(answer, bytes | str)
        return web.Response(body=answer)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    made = Server([b""])
    app = web.Application()
    app.router.add_get("/{tail:.*}", made.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
def nobody() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def boundary(server_urls: list[str], limits: FetchLimits = QUICK) -> bytes:
    async with NodeReader(limits) as reader:
        return await reader.boundary(server_urls, ROOT, 4, lambda data: data == b"good")


async def test_bytes_come_from_the_path_of_their_root(server: Server) -> None:
    server.answers = [b"good"]
    assert await boundary([server.url]) == b"good"
    assert server.paths == [f"/v1/boundaries/{ROOT.hex()}"]


async def test_a_neighbour_is_asked_when_the_node_is_gone(server: Server, nobody: str) -> None:
    server.answers = [b"good"]
    assert await boundary([nobody, server.url]) == b"good"


@pytest.mark.parametrize("first", [404, 500, b"evil", b"good but longer", b"", "elsewhere", "slow"])
async def test_a_bad_answer_is_tried_again(server: Server, first: object) -> None:
    server.answers = [first, b"good"]
    assert await boundary([server.url]) == b"good"
    assert len(server.paths) == 2


@pytest.mark.parametrize("always", [404, b"evil", "elsewhere"])
async def test_tries_are_bounded_and_redirects_not_followed(server: Server, always: object) -> None:
    server.answers = [always]
    with pytest.raises(UnavailableError):
        await boundary([server.url])
    assert server.paths == [f"/v1/boundaries/{ROOT.hex()}"] * QUICK.attempts


async def test_a_source_that_failed_gets_one_try_until_it_is_forgotten(server: Server) -> None:
    server.answers = [404]
    async with NodeReader(QUICK) as reader:
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await reader.boundary([server.url], ROOT, 4, lambda _: True)
        assert len(server.paths) == QUICK.attempts + 1
        server.answers = [b"good", 404, b"good"]
        for _ in range(2):
            assert await reader.boundary([server.url], ROOT, 4, lambda data: data == b"good") == b"good"


async def test_nobody_to_ask_is_unavailable_at_once(nobody: str) -> None:
    with pytest.raises(UnavailableError, match="no usable endpoint"):
        await boundary(["", "file:///etc/passwd"])
    with pytest.raises(UnavailableError):
        await boundary([nobody])


@pytest.mark.parametrize("body", [b"[]", b"nonsense", b'{"a":1}', b"[" * 5000, b'"x"'])
async def test_a_batch_that_is_no_acceptable_object_is_unavailable(server: Server, body: bytes) -> None:
    server.answers = [body]
    async with NodeReader(QUICK) as reader:
        with pytest.raises(UnavailableError):
            await reader.batch(server.url, 3, lambda value: value if "b" in value else None)


async def test_a_batch_is_read_by_number(server: Server) -> None:
    server.answers = [b'{"b":1}']
    async with NodeReader(QUICK) as reader:
        assert await reader.batch(server.url, 3, lambda value: value if "b" in value else None) == {"b": 1}
    assert server.paths == ["/v1/batches/3"]


async def test_evidence_and_receipt_have_their_paths(server: Server) -> None:
    server.answers = [b"{}"]
    async with NodeReader(QUICK) as reader:
        await reader.evidence(server.url, ROOT, 2)
        await reader.receipt(server.url, ROOT)
    assert server.paths == [f"/v1/jobs/{ROOT.hex()}/evidence?boundary=2", f"/v1/jobs/{ROOT.hex()}/receipt"]


@pytest.mark.parametrize("answer", [b'{"a": 1, "a": 2}', b'{"a": NaN}', b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}"])
async def test_documents_that_readers_may_read_differently_are_refused(server: Server, answer: bytes) -> None:
    server.answers = [answer]
    async with NodeReader(QUICK) as reader:
        with pytest.raises(UnavailableError):
            await reader.receipt(server.url, ROOT)
