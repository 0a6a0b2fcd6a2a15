"""JSON-RPC over HTTP with a bounded retry budget for outages."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from efedllm.errors import ChainError
from efedllm.logs import get_logger

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
# An outage longer than this is worth a line in the log, seconds.
_QUIET = 3.0
_RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)

# Chain ids of development chains, where receipts come at once and the clock may be moved.
LOCAL_CHAIN_IDS = (1337, 31337)


class RpcError(ChainError):
    """The RPC server answered with a JSON-RPC error. `data` is revert data when there is some."""

    def __init__(self, method: str, error: dict[str, Any]) -> None:
        text = str(error.get("message", "no message"))
        super().__init__("rpc-error", f"The chain refused {method}: {text}.", "")
        self.text = text
        self.data = _revert_data(error)

    @property
    def is_revert(self) -> bool:
        """A contract refused; anything else is the server's or the EVM's own complaint."""
        return bool(self.data) or "revert" in self.text.lower()


def _revert_data(error: dict[str, Any]) -> bytes | None:
    """RevertError data where geth, anvil (a string) and ganache (a string, or {hash: {return}} / {result}) put it."""
    data = error.get("data")
    if isinstance(data, dict):
        data = data.get("data") or data.get("result") or data.get("return")
    if isinstance(data, str):
        text = data.removeprefix("Reverted ")
        if text.startswith("0x"):
            try:
                return bytes.fromhex(text[2:])
            except ValueError:
                return None
    return None


def _detail(problem: Exception) -> str:
    """Why a server was not reached, in words."""
    if isinstance(problem, aiohttp.ClientConnectorError) and problem.os_error.errno:
        return os.strerror(problem.os_error.errno).lower()
    return "no answer in time" if isinstance(problem, TimeoutError) else str(problem) or type(problem).__name__


class Rpc:
    """One RPC endpoint. `budget` seconds bound every request with all its retries; `attempt` bounds each try."""

    def __init__(self, url: str, *, budget: float = 30.0, attempt: float = 10.0) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ChainError("bad-rpc", f"{url!r} is not an RPC address.", "Pass --rpc http://HOST:PORT")
        self.url = url
        self.budget = budget
        self.attempt = attempt
        # Not web3's own provider: it guards its sessions by one lock of the whole process, which a request that is
        # cancelled at the wrong moment leaves locked for ever.
        self._session: aiohttp.ClientSession | None = None
        self._number = 0
        self._away = False
        self._log = get_logger("rpc")

    async def close(self) -> None:
        """Close the connections. The object can be used again afterwards."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _post(self, method: str, params: Sequence[Any]) -> dict[str, Any]:
        """One try. Raises what aiohttp raises, ValueError for an answer that is no JSON-RPC."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=16))
        self._number += 1
        call = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": list(params)}
        async with self._session.post(self.url, json=call) as response:
            response.raise_for_status()
            answer = await response.json(content_type=None)
        if not isinstance(answer, dict):
            raise ValueError("the answer is no JSON-RPC")
        return answer

    async def request(self, method: str, params: Sequence[Any] = ()) -> Any:
        """The result of one call. Safe to retry for every method we use: a signed transaction is idempotent.

        Raises RpcError for an answer that is an error, ChainError "rpc-down" when the budget is used up.
        """
        begun = time.monotonic()
        deadline = begun + self.budget
        pause = _FIRST_PAUSE
        while True:
            try:
                async with asyncio.timeout(max(0.05, min(self.attempt, deadline - time.monotonic()))):
                    answer = await self._post(method, params)
                break
            except aiohttp.ClientResponseError as error:
                if error.status not in _RETRIED_STATUS:
                    raise ChainError(
                        "rpc-refused",
                        f"The RPC server {self.url} answered {error.status} {error.message}.",
                        "Check --rpc and its credentials.",
                    ) from error
                problem: Exception = error
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                problem = error
            if time.monotonic() + pause >= deadline:
                raise ChainError(
                    "rpc-down",
                    f"The chain at {self.url} does not answer ({_detail(problem)}).",
                    "Start it (a local network: `efedllm up`), or check --rpc.",
                ) from problem
            if not self._away and time.monotonic() - begun > _QUIET:
                self._away = True
                self._log.warning("the chain does not answer, waiting", rpc=self.url, seconds=round(self.budget))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._away = False
        if answer.get("error") is not None:
            error_field: Any = answer["error"]
            raise RpcError(method, error_field if isinstance(error_field, dict) else {"message": str(error_field)})
        return answer.get("result")

    async def integer(self, method: str, params: Sequence[Any] = ()) -> int:
        """A request whose result is a hex quantity."""
        return int(await self.request(method, params), 16)
