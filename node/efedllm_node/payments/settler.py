"""Settles the best voucher of each session on chain, when there is a reason to."""

from __future__ import annotations

from efedllm.chain import Chain, ChainTime, format_amount
from efedllm.errors import ChainError
from efedllm.logs import get_logger
from efedllm_node.config import Policy
from efedllm_node.metrics import NodeMetrics
from efedllm_node.payments.rules import settle_reason
from efedllm_node.payments.sessions import ServedSession, ServedSessions

CLOSING_AGE = 5.0  # seconds: how old a session's state may be while something in it is unsettled


class Settler:
    """Settling twice is harmless: the contract pays only what is new, and we look before we send."""

    def __init__(self, chain: Chain, sessions: ServedSessions, policy: Policy, metrics: NodeMetrics) -> None:
        self._chain = chain
        self._sessions = sessions
        self._policy = policy
        self._metrics = metrics
        self._log = get_logger("settler")

    async def tick(self, time: ChainTime, draining: bool) -> bool:
        """Settle what is due. True when nothing worth a transaction is left. Raises ChainError: try again later."""
        failure: ChainError | None = None
        for session in self._sessions.unsettled():
            before = session.record.settled
            await self._sessions.refresh(session, max_age=CLOSING_AGE)
            try:
                await self._settle(session, time, draining)
            except ChainError as error:
                # One session's refusal must not keep the others from being paid.
                failure = error
                self._log.warning(
                    "not settled", session=session.record.session_id, code=error.code, reason=error.message
                )
            finally:
                if session.record.settled > before:
                    session.settled_in = time.epoch
        if failure is not None:
            raise failure
        return not any(self._reason(session, time, draining=True) for session in self._sessions.unsettled())

    async def _settle(self, session: ServedSession, time: ChainTime, draining: bool) -> None:
        if self._reason(session, time, draining) is None:
            return
        # Another node of the route may have settled the same voucher a moment ago.
        await self._sessions.update(session, await self._chain.session(session.record.session_id))
        reason = self._reason(session, time, draining)
        record = session.record
        if reason is None or record.voucher is None or record.voucher_sig is None:
            return
        try:
            await self._chain.contracts.session_escrow.settle(record.key, record.voucher, record.voucher_sig)
        except ChainError as error:
            if error.code != "revert:StaleVoucher":
                raise
        else:
            self._metrics.settled.labels(reason).inc()
            self._log.info("settled", session=record.session_id, reason=reason, total=format_amount(record.cumulative))
        await self._sessions.update(session, await self._chain.session(record.session_id))

    def _reason(self, session: ServedSession, time: ChainTime, draining: bool) -> str | None:
        return settle_reason(session.unsettled(), time, draining, self._policy)
