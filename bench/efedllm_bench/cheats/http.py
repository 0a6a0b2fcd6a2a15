"""A door before a node's public HTTP interface that keeps back, falsifies or delays what auditors ask for.

The node behind it is real and honest; what is registered on chain is the door.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
from aiohttp import web

Lie = Literal["withhold_batch", "withhold_rows", "withhold_evidence", "other_rows", "other_job", "slow_loris"]

_PATHS: dict[Lie, str] = {
    "withhold_batch": "/v1/batches/",
    "withhold_rows": "/v1/boundaries/",
    "withhold_evidence": "/v1/jobs/",
    "other_rows": "/v1/boundaries/",
    "other_job": "/v1/batches/",
    "slow_loris": "/v1/boundaries/",
}
# One byte in this many seconds: no answer ever ends.
_PAUSE = 0.5


@dataclass
class Door:
    """Serves what the node at `behind` serves, but for `lie`; under a path of `repeats` what another path has. `job`:
    members of every leaf's job that "other_job" shows instead of the node's. An async context manager; `url` is then
    set.
    """

    behind: str
    lie: Lie | None = None
    repeats: Mapping[str, str] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    url: str = ""
    asked: list[str] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("GET", "/{tail:.*}", self._answer)
        self._session = aiohttp.ClientSession()
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        lie = self.lie if self.lie is not None and request.path.startswith(_PATHS[self.lie]) else None
        if lie is not None and lie.startswith("withhold"):
            raise web.HTTPNotFound
        async with self._session.get(self.behind + self.repeats.get(request.path, request.path_qs)) as real:
            body, status, kind = await real.read(), real.status, real.content_type
        if lie == "other_rows":
            body = body[::-1]
        if lie == "other_job":
            batch = json.loads(body)
            leaves = [{**leaf, "job": {**leaf["job"], **self.job}} for leaf in batch["leaves"]]
            body = json.dumps({**batch, "leaves": leaves}).encode()
        if lie != "slow_loris":
            return web.Response(body=body, status=status, content_type=kind)
        slow = web.StreamResponse(status=status)
        slow.content_length = len(body)
        await slow.prepare(request)
        for at in range(len(body)):
            await slow.write(body[at : at + 1])
            await asyncio.sleep(_PAUSE)
        return slow
