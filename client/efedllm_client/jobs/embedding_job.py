"""One job that embeds a text: the last hop of an encoder sends its hidden states instead of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from efedllm.commitments.blame import Fault
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import as_dtype, decode
from efedllm.commitments.signing import check
from efedllm.errors import ProtocolError
from efedllm.wire.messages import ActMsg
from efedllm_client.jobs.job import JobOrder, PaidJob

Float32 = npt.NDArray[np.float32]


class EmbeddingJob(PaidJob):
    """Yields nothing: run it to its end, then read `states`."""

    def __init__(self, order: JobOrder, hidden: int) -> None:
        """`hidden`: width of the model's states."""
        super().__init__(order)
        self._dtype = as_dtype(order.spec.wire_dtype)
        self._hidden = hidden
        self._out = BoundaryTree(order.spec.job_id, len(order.route), self._dtype, hidden)
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
        digest = self._check_envelope(act, tree.append(act.payload), at)
        self._rows.append(rows)
        await self._acknowledge(act, digest)

    def _complete(self) -> bool:
        return self._out.length == self.record.spec.prompt_tokens

    def _own_reason(self) -> str:
        return "length"

    def output_fault(self) -> Fault | None:
        """The fault of the last hop if it committed to other states than it sent, else None.

        None also for a commitment that it did not sign: anybody could have made that one. `find_faults` reports it.
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
