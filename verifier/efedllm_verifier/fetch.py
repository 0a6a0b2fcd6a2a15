"""Reading nodes over HTTP: batches, boundary bytes, receipts and envelopes. Nothing read here is trusted.

Every answer is bounded in size and time, no redirect is followed, and the number of tries is bounded.
`UnavailableError` means that no source gave acceptable bytes; whose fault that is, is the auditor's decision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp

from efedllm.errors import ProtocolError
from efedllm.wire.body import parse_json

T = TypeVar("T")

MAX_BATCH_BYTES = 64 << 20
MAX_JSON_BYTES = 4 << 20


class UnavailableError(Exception):
    """No source answered with acceptable content."""


@dataclass(frozen=True)
class FetchLimits:
    """connect, total: seconds one request may take. attempts: tries per source. pause: seconds before the second try,
    doubled before each later one. memory: seconds for which a source that failed all tries gets a single one."""

    connect: float = 3.0
    total: float = 60.0
    attempts: int = 4
    pause: float = 0.25
    memory: float = 10.0


DEFAULT_LIMITS = FetchLimits()


def base_url(endpoint: str) -> str | None:
    """HTTP base of a registered endpoint (a WebSocket URL names the same server); None when it is no such URL."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        return None
    scheme = {"ws": "http", "wss": "https", "http": "http", "https": "https"}.get(parts.scheme)
    if scheme is None or not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{scheme}://{host}{'' if port is None else f':{port}'}{parts.path.rstrip('/').removesuffix('/v1/ws')}"


class NodeReader:
    """Reads any node's public HTTP interface. Use as an async context manager."""

    def __init__(self, limits: FetchLimits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None
        self._down: dict[str, float] = {}

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=self._limits.total, sock_connect=self._limits.connect)
        self._session = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def batch(self, endpoint: str, seq: int, take: Callable[[dict[str, Any]], T | None]) -> T:
        """What `take` makes of the node's batch `seq`, a JSON object; it returns None for one that it refuses.

        Raises UnavailableError.
        """
        return await self._object([endpoint], f"/v1/batches/{seq}", MAX_BATCH_BYTES, take)

    async def boundary(
        self, endpoints: Sequence[str], root: bytes, size: int, accept: Callable[[bytes], bool]
    ) -> bytes:
        """Exactly `size` bytes under a boundary root, from the first endpoint whose answer `accept` takes.

        Raises UnavailableError when none has them.
        """

        def take(data: bytes) -> bytes | None:
            return data if len(data) == size and accept(data) else None

        return await self._first(endpoints, f"/v1/boundaries/{root.hex()}", size, take)

    async def receipt(self, endpoint: str, job_id: bytes, *, once: bool = False) -> dict[str, Any]:
        """What the node committed to in a job. `once`: it is not asked again. Raises UnavailableError."""
        path = f"/v1/jobs/{job_id.hex()}/receipt"
        return await self._object([endpoint], path, MAX_JSON_BYTES, _any_object, once=once)

    async def previous(self, endpoint: str, job_id: bytes) -> dict[str, Any]:
        """The commitment of the hop before that the node's own names; asked for once. Raises UnavailableError."""
        path = f"/v1/jobs/{job_id.hex()}/previous"
        return await self._object([endpoint], path, MAX_JSON_BYTES, _any_object, once=True)

    async def evidence(self, endpoint: str, job_id: bytes, boundary: int) -> dict[str, Any]:
        """Leaves and doubly signed envelopes that the node keeps of a boundary. Raises UnavailableError."""
        path = f"/v1/jobs/{job_id.hex()}/evidence?boundary={boundary}"
        return await self._object([endpoint], path, MAX_BATCH_BYTES, _any_object)

    async def _object(
        self,
        endpoints: Sequence[str],
        path: str,
        limit: int,
        take: Callable[[dict[str, Any]], T | None],
        *,
        once: bool = False,
    ) -> T:
        def parse(data: bytes) -> T | None:
            try:
                value = parse_json(data)
            except ProtocolError:
                return None
            return take(value) if isinstance(value, dict) else None

        return await self._first(endpoints, path, limit, parse, once=once)

    async def _first(
        self,
        endpoints: Sequence[str],
        path: str,
        limit: int,
        take: Callable[[bytes], T | None],
        *,
        once: bool = False,
    ) -> T:
        """Try every endpoint in order; whole rounds are repeated, since a node may be restarting or still storing."""
        bases = [base for base in map(base_url, dict.fromkeys(endpoints)) if base is not None]
        now = asyncio.get_running_loop().time()
        known_down = all(self._down.get(base, now) > now for base in bases)
        problems: dict[str, str] = {}
        for attempt in range(1 if known_down or once else self._limits.attempts):
            if attempt:
                await asyncio.sleep(self._limits.pause * 2 ** (attempt - 1))
            for base in bases:
                try:
                    data = await self._get(base + path, limit)
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                    problems[base] = str(error) or type(error).__name__
                    continue
                taken = await asyncio.to_thread(take, data)
                if taken is not None:
                    self._down.pop(base, None)
                    return taken
                problems[base] = f"{len(data)} bytes that do not match"
        if not once:
            until = asyncio.get_running_loop().time() + self._limits.memory
            self._down.update(dict.fromkeys(bases, until))
        raise UnavailableError("; ".join(f"{k}: {v}" for k, v in problems.items()) or "no usable endpoint is known")

    async def _get(self, url: str, limit: int) -> bytes:
        if self._session is None:
            raise RuntimeError("NodeReader is used outside its context")
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"answered {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > limit:
                    raise ValueError(f"answered more than {limit} bytes")
            return bytes(body)


def _any_object(value: dict[str, Any]) -> dict[str, Any]:
    return value
