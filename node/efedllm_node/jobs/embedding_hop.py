"""One hop of a job that embeds a text: the text goes through whole, in one pass, and its rows go to the client."""

from __future__ import annotations

import numpy as np

from efedllm.errors import ProtocolError
from efedllm_node.compute.engine_step import Output
from efedllm_node.compute.work_item import Inputs
from efedllm_node.jobs.job_hop import JobHop, Reason
from efedllm_node.jobs.peers import Link


class EmbeddingHop(JobHop):
    """There are no tokens and no ring: hop 0 receives no rows, and nobody acknowledges the rows of the last hop."""

    emits = False

    async def _offer(self, inputs: Inputs) -> None:
        """Collect the text, in however many pieces the previous hop sends it, and run it whole."""
        progress = self._progress
        progress.held.append(inputs)
        if progress.held_positions < self.record.spec.prompt_tokens:
            return
        whole = np.concatenate(progress.held)
        progress.held.clear()
        progress.held.append(whole)
        await self._feed()

    def _end_position(self) -> int:
        return self.record.spec.prompt_tokens

    async def _emit(self, result: Output, chunk: bytes) -> None:
        await self._tell(self._plan.outbound.emit(result.payload, result.n, chunk))
        if not self._progress.stopping:
            await self._finish("length")

    def _takes_ack(self, link: Link) -> bool:
        return not self._last or link.is_node

    def _check_cancelled(self, held: int) -> None:
        if 0 < held < self.record.spec.prompt_tokens:
            # An encoder's output for a part of a text is not the output for the text: there is nothing to commit to.
            raise ProtocolError("partial-text", "The text was cancelled in the middle.", "Send it whole.")

    def _due_reason(self, claimed: str) -> Reason | None:
        # A stop may have crossed the result: then "cancelled" is right as well.
        whole = self._progress.done == self.record.spec.prompt_tokens
        return "length" if whole and claimed == "length" else None
