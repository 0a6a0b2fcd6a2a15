"""Embedding a text: one job through an encoder, whose last hidden states come back instead of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from efedllm.commitments.blame import Fault
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import as_dtype, decode
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.messages import JobSpec, RouteHop
from efedllm.commitments.signing import check
from efedllm.errors import ProtocolError
from efedllm.wire.messages import AckMsg, ActMsg
from efedllm_client.jobs.job import Job, Patience
from efedllm_client.payments.session import PaidSession
from efedllm_client.policy import Terms

Float32 = npt.NDArray[np.float32]


class EmbeddingJob(Job):
    """A job that yields no tokens: run it to its end, then read `states`."""

    def __init__(
        self,
        session: PaidSession,
        spec: JobSpec,
        prompt: Sequence[int],
        route: Sequence[RouteHop],
        domain: Domain,
        terms: Terms,
        patience: Patience,
        hidden: int,
    ) -> None:
        super().__init__(session, spec, prompt, route, domain, terms, patience)
        self._dtype = as_dtype(spec.wire_dtype)
        self._hidden = hidden
        self._out = BoundaryTree(spec.job_id, len(route), self._dtype, hidden)
        self._rows: list[Float32] = []

    @property
    def states(self) -> Float32:
        """float32 [prompt tokens, hidden]: the states after the last layer."""
        return np.concatenate(self._rows)

    async def _take(self, act: ActMsg, at: float) -> None:
        record, spec, tree = self.record, self.record.spec, self._out
        if act.job_id != spec.job_id:
            return
        if act.boundary != len(record.route) or act.from_pos != tree.length or act.prev != self._prev:
            raise ProtocolError("out-of-order", f"Expected states from position {tree.length}, got {act.from_pos}.")
        if (act.dtype, act.dim) != (self._dtype, self._hidden):
            raise ProtocolError("bad-shape", f"Expected rows of {self._hidden} {self._dtype.name}.")
        if tree.length + act.n > spec.prompt_tokens:
            raise ProtocolError("too-long", f"More than the {spec.prompt_tokens} rows of the text.")
        rows = decode(act.payload, self._dtype, self._hidden).astype(np.float32)
        digest = act.envelope(tree.append(act.payload)).digest(self._domain)
        check(digest, act.signature, record.route[-1].signer)
        self._prev = digest
        self._rows.append(rows)
        record.first_token = record.first_token or at
        record.last_token = at
        last = len(record.route) - 1
        ack = AckMsg(spec.job_id, act.boundary, act.from_pos, act.n, self._session.sign_digest(digest))
        await self._send(last, ack)

    def _complete(self) -> bool:
        return self._out.length == self.record.spec.prompt_tokens

    def _own_reason(self) -> str:
        return "length"

    def output_fault(self) -> Fault | None:
        """The last hop's guilt when it committed to other states than the ones it signed for us.

        None for a commitment that it did not sign: anybody could have made it, which `find_faults` tells.
        """
        last = len(self.record.route) - 1
        signed = self.record.commits[last]
        if signed is None or signed.commit.out_root == self._out.root():
            return None
        try:
            check(signed.commit.digest(self._domain), signed.signature, self.record.route[last].signer)
        except ProtocolError:
            return None
        return Fault("output-mismatch", last + 1, last, f"Hop {last} committed to other states than it sent.")


def mean_pooled(states: Float32, *, normalize: bool = True) -> list[float]:
    """The embedding of a text from its states [n, hidden]: their mean, of length 1 if `normalize`.

    Sums in float64, in the order of the positions, so that equal states give equal embeddings everywhere.
    """
    sums = [math.fsum(column) / len(states) for column in states.astype(np.float64).T]
    if not normalize:
        return sums
    norm = math.sqrt(math.fsum(value * value for value in sums))
    return [value / norm for value in sums] if norm > 0 else sums


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """The cosine of two embeddings; 0 when one of them is zero."""
    norms = math.sqrt(math.fsum(a * a for a in left)) * math.sqrt(math.fsum(b * b for b in right))
    return math.fsum(a * b for a, b in zip(left, right, strict=True)) / norms if norms > 0 else 0.0
