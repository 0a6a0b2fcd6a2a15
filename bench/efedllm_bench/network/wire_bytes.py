"""Bytes that nodes exchanged, read from their own /metrics."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import aiohttp

_LINE = re.compile(r'^efedllm_node_wire_bytes_total\{direction="(\w+)",frame="(\w+)"\} (\S+)$', re.MULTILINE)


def parse(page: str) -> Counter[tuple[str, str]]:
    """Bytes by (direction, frame type) from a page in Prometheus text format."""
    return Counter({(direction, frame): int(float(value)) for direction, frame, value in _LINE.findall(page)})


async def scrape(endpoints: Iterable[str]) -> Counter[tuple[str, str]]:
    """The sum over several nodes."""
    total: Counter[tuple[str, str]] = Counter()
    async with aiohttp.ClientSession() as session:
        for endpoint in endpoints:
            async with session.get(f"{endpoint}/metrics") as answer:
                answer.raise_for_status()
                total += parse(await answer.text())
    return total
