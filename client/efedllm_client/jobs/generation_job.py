"""One job that generates tokens on one route."""

from __future__ import annotations

from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.messages import ids_bytes
from efedllm.errors import ProtocolError
from efedllm.wire.messages import ActMsg
from efedllm_client.jobs.job import JobOrder, PaidJob
from efedllm_client.payments.rules import answer_demand, next_voucher

MAX_TOKEN_ID = 0x7FFFFFFF


class GenerationJob(PaidJob):
    """Yields the generated token ids in order."""

    def __init__(self, order: JobOrder) -> None:
        super().__init__(order)
        self._tree = BoundaryTree(order.spec.job_id, 0, WireDtype.I32, 1)
        self._tree.append(ids_bytes(order.prompt))

    async def _take(self, act: ActMsg, at: float) -> None:
        record, spec = self.record, self.record.spec
        if act.job_id != spec.job_id:
            return
        position = spec.prompt_tokens + len(record.emitted)
        if act.boundary != 0 or act.from_pos != position or act.prev != self._prev:
            raise ProtocolError("out-of-order", f"Expected the token at position {position}, got {act.from_pos}.")
        if len(record.emitted) + act.n > spec.max_new_tokens:
            raise ProtocolError("too-many-tokens", f"More than the {spec.max_new_tokens} tokens asked for.")
        tokens = [int.from_bytes(act.payload[i : i + 4], "little") for i in range(0, len(act.payload), 4)]
        if max(tokens) > MAX_TOKEN_ID:
            raise ProtocolError("bad-message", "A token id must be in [0, 2**31).")
        digest = self._check_envelope(act, self._tree.append(act.payload), at)
        record.emitted += tokens
        await self._acknowledge(act, digest)
        demand = self._demand
        amount = next_voucher(self._terms, self._session.signed, len(record.emitted))
        if demand is not None and amount is None:
            amount = answer_demand(self._terms, self._session.signed, len(record.emitted), demand[1].due)
        await self._promise(amount)

    def _complete(self) -> bool:
        if self._stopping:
            return True
        emitted, spec = self.record.emitted, self.record.spec
        return len(emitted) == spec.max_new_tokens or (bool(emitted) and emitted[-1] == spec.eos_token)

    def _own_reason(self) -> str:
        if len(self.record.emitted) == self.record.spec.max_new_tokens:
            return "length"
        return "cancelled" if self._stopping else "eos"
