"""Canaries that this node gives: jobs it answers wrongly because the client that pays for them signed that it should.

Verifiers that compute fail such a job, those that do not pass it; once all have attested, the node opens it and is
forgiven (`docs/protocol.md`, section 9.2). Until then nothing that others see of the node tells it from another job.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import numpy as np

from efedllm.commitments.canary import MAX_OPENINGS, Canary, CanaryPlace, canary_place, canary_salt
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import keccak
from efedllm.commitments.signing import check
from efedllm.errors import ProtocolError
from efedllm.wire.messages import OpenJobMsg
from efedllm_node.canaries.store import CanaryStore
from efedllm_node.compute.work_item import Feed, Inputs
from efedllm_node.storage.records import CanaryRecord, JobRecord

# A row is moved by this share of its distance to another one: far beyond every float model's tolerance, and no more
# than rows of ordinary jobs differ by. The other row itself would show in the output, since layers add to their input.
_MOVE = 0.2
# Rows nearer than this, relative to the length, say too little about how rows differ.
_NEAR = 0.1


def check_consent(msg: OpenJobMsg, clients: Collection[str], domain: Domain, *, slashable: bool) -> None:
    """Whether an OPEN_JOB may ask for a canary, as `CanaryDesk` says.

    Raises ProtocolError "canary-refused" or "bad-signature".
    """
    if msg.session_key.client not in clients:
        raise ProtocolError(
            "canary-refused",
            "This node gives no canaries to your wallet.",
            "Its operator names wallets with `efedllm node run --canary-client ADDRESS`.",
        )
    if not slashable:
        raise ProtocolError(
            "canary-refused",
            "What this node computes is measured by limits that slash nobody, and such failures are not forgiven.",
            "Plant at a node of an exact model, or of a calibrated float one computed in float32.",
        )
    if msg.canary is None:
        raise ProtocolError("canary-refused", "The job comes without its client's consent.")
    check(Canary(msg.job_spec.job_id, msg.hop).digest(domain), msg.canary, msg.session_key.signer)


class CanaryDesk:
    """Which jobs may be canaries: of clients in the operator's list, and no more than can be opened.

    slashable: whether wrong rows of this node are severe. Only severe failures are forgiven.
    """

    def __init__(self, clients: frozenset[str], store: CanaryStore, *, slashable: bool) -> None:
        self._clients = clients
        self._store = store
        self._slashable = slashable
        self._lock = asyncio.Lock()

    def consent(self, msg: OpenJobMsg, domain: Domain) -> CanaryRecord | None:
        """The canary that an OPEN_JOB asks for, None when it asks for none.

        Raises ProtocolError "canary-refused" or "bad-signature".
        """
        if msg.canary is None:
            return None
        check_consent(msg, self._clients, domain, slashable=self._slashable)
        return CanaryRecord(msg.canary, os.urandom(32))

    @asynccontextmanager
    async def room(self, record: JobRecord, epoch: int) -> AsyncIterator[None]:
        """Inside, the job may be kept. Raises ProtocolError "canary-refused" for one canary more than an epoch takes.

        epoch: of the chain. A canary counts until the batch that may hold it is of an earlier epoch.
        """
        if record.canary is None:
            yield
            return
        async with self._lock:
            if await self._store.live(epoch) >= MAX_OPENINGS:
                raise ProtocolError(
                    "canary-refused",
                    f"This node holds {MAX_OPENINGS} canaries already, the most that one epoch forgives.",
                    "Plant more in the next epoch.",
                )
            yield


def _place(record: JobRecord, canary: CanaryRecord) -> CanaryPlace:
    spec = record.spec
    # The last sampled token is never fed; an encoder's job, which samples none, has its text's positions.
    return canary_place(canary.consent, canary.nonce, spec.prompt_tokens + max(spec.max_new_tokens - 1, 0))


def leaf_salt(record: JobRecord, tokens: int) -> bytes:
    """Salt of the leaf of a job that ended after `tokens` positions: random, or the one that says it is a canary.

    A canary that ended before its wrong position is an ordinary job: it was computed as it should be.
    """
    canary = record.canary
    if canary is None or tokens <= _place(record, canary).position:
        return os.urandom(32)
    return canary_salt(record.job_id, record.hop, canary.consent, canary.nonce)


def canary_feed(record: JobRecord, vocab: int) -> Feed | None:
    """What the engine gets for a job's rows; None: the rows themselves."""
    return None if record.canary is None else Exchange(_place(record, record.canary), vocab)


class Exchange:
    """Gives the engine, at one position, another token, or states moved as far as states differ. A `Feed`.

    What follows is computed from the caches that result, so the output is plausible and wrong from there on.
    """

    def __init__(self, place: CanaryPlace, vocab: int) -> None:
        self._place = place
        self._vocab = vocab
        self._before: Inputs | None = None  # the last input before the position, when it came in an earlier pass

    def __call__(self, first: int, inputs: Inputs) -> Inputs:
        at = self._place.position - first
        if at >= len(inputs):
            self._before = inputs[-1:]
        if not 0 <= at < len(inputs):
            return inputs
        others = np.delete(inputs, at, axis=0)
        if self._before is not None and at == 0:
            others = np.concatenate([self._before, others])
        changed = inputs.copy()
        changed[at] = self._token(inputs[at], others) if inputs.ndim == 1 else self._states(inputs[at], others)
        return changed

    def _states(self, row: Inputs, others: Inputs) -> Inputs:
        """The row with every number moved up or down by a share of what another row, neither near nor farthest, differs
        in; with signs drawn, so that no known row shows in the result.
        """
        distances = np.linalg.norm((others - row).astype(np.float64), axis=1)
        far = np.flatnonzero(distances > _NEAR * np.linalg.norm(row.astype(np.float64)))
        other = others[far[np.argsort(distances[far])[len(far) // 2]]] if len(far) else np.zeros_like(row)
        moved: Inputs = row + np.float32(_MOVE) * _signs(self._place.choice, len(row)) * (row - other)
        return moved

    def _token(self, token: Inputs, others: Inputs) -> int:
        """Another token of the text; any other one where the text has a single token."""
        different = others[others != token]
        if len(different):
            return int(different[self._place.choice % len(different)])
        return (int(token) + 1 + self._place.choice % (self._vocab - 1)) % self._vocab


def _signs(choice: int, count: int) -> Inputs:
    """float32 [count] of 1 and -1: the bits of K(u256 choice | u32 i) for i = 0, 1, ..."""
    head = choice.to_bytes(32)
    drawn = b"".join(keccak(head + i.to_bytes(4)) for i in range(-(-count // 256)))
    return np.unpackbits(np.frombuffer(drawn, np.uint8), count=count).astype(np.float32) * 2 - 1
