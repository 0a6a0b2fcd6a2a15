"""A node that sends wrong rows: every breach ends the job with its name, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import ZERO32
from efedllm.errors import ProtocolError
from efedllm.wire.messages import ActMsg
from tests.node.node_kit import Lab, change_sent, eventually, still_serves
from tests.node.raw_client import job_error
from tests.node.test_generation import PROMPT


class Meddler:
    """Changes the first decode row that hop 0 sends, each time it is armed with a `change`."""

    def __init__(self, lab: Lab) -> None:
        self.change: Any = None
        change_sent(lab.apps[0], self._changed)

    def _changed(self, message: Any) -> list[Any]:
        if isinstance(message, ActMsg) and message.from_pos > 0 and self.change is not None:
            message, self.change = self.change(message), None
        return [message]


BREACHES: tuple[tuple[str, Any], ...] = (
    ("out-of-order", lambda m: replace(m, from_pos=m.from_pos + 1)),
    ("broken-chain", lambda m: replace(m, prev=ZERO32)),
    ("bad-signature", lambda m: replace(m, payload=bytes(len(m.payload)))),
    ("nonfinite", lambda m: replace(m, payload=b"\xff" * len(m.payload))),
    ("bad-shape", lambda m: replace(m, dtype=WireDtype.BF16, dim=m.dim * 2)),
)


async def aborted(lab: Lab, count: int) -> bool:
    return [await app.store.counts() for app in lab.apps] == [{"aborted": count}] * len(lab.apps)


async def test_a_node_that_breaks_the_stream_is_named(pair: Lab) -> None:
    meddler = Meddler(pair)
    async with await pair.client() as client:
        for count, (code, change) in enumerate(BREACHES, start=1):
            meddler.change = change
            spec = client.spec(PROMPT, 8)
            await client.open_job(spec, PROMPT, 100)
            await client.start(spec)
            with pytest.raises(ProtocolError) as caught:
                await client.collect(spec)
            assert caught.value.code == code
            assert pair.apps[0].address in caught.value.message
            # Every node reports the end of a job to its client.
            while (await job_error(client)).code != code:
                pass
            await eventually(partial(aborted, pair, count), "both nodes give up")
    await still_serves(pair)
