"""Reading JSON of bounded size from untrusted servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp

from efedllm.errors import ProtocolError
from efedllm.wire.body import parse_json


async def get_json(http: aiohttp.ClientSession, url: str, limit: int, params: Mapping[str, str] | None = None) -> Any:
    """The document at `url`, at most `limit` bytes; redirects are not followed.

    Raises ProtocolError "http-status", "oversized" or "bad-json", and what aiohttp raises for a broken connection.
    """
    async with http.get(url, params=params, allow_redirects=False) as response:
        if response.status != 200:
            raise ProtocolError("http-status", f"HTTP {response.status}")
        body = bytearray()
        async for chunk in response.content.iter_chunked(1 << 16):
            body += chunk
            if len(body) > limit:
                raise ProtocolError("oversized", f"The answer exceeds {limit} bytes.")
    return parse_json(bytes(body))
