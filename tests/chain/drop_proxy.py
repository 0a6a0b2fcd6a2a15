"""A TCP proxy in front of the RPC server, to lose connections at chosen moments."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import urlsplit

Mode = Literal["pass", "refuse", "swallow"]


class DropProxy:
    """Forwards to a server. Mode "refuse" closes every connection; "swallow" delivers requests that contain `match`
    but closes the connection instead of returning their answers.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.mode: Mode = "pass"
        self.match = b""
        self.swallowed = 0
        # How many answers to swallow before passing everything again.
        self.heal_after = 10**9
        self.url = ""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def refuse(self) -> None:
        """Drop open connections and accept none from now on."""
        self.mode = "refuse"
        for writer in self._writers:
            writer.close()

    async def stop(self) -> None:
        self.refuse()
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "refuse":
            writer.close()
            return
        up_reader, up_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, up_writer}
        swallow = False

        async def requests() -> None:
            nonlocal swallow
            while data := await reader.read(65536):
                swallow = swallow or (self.mode == "swallow" and self.match in data)
                up_writer.write(data)
                await up_writer.drain()
            up_writer.close()

        async def answers() -> None:
            while data := await up_reader.read(65536):
                if swallow:
                    self.swallowed += 1
                    if self.swallowed >= self.heal_after:
                        self.mode = "pass"
                    break
                writer.write(data)
                await writer.drain()
            writer.close()

        with suppress(ConnectionError):
            await asyncio.gather(requests(), answers())
        for end in (writer, up_writer):
            self._writers.discard(end)
            end.close()


ProxyMaker = Callable[[str], Coroutine[Any, Any, DropProxy]]
