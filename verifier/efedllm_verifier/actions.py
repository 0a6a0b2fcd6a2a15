"""Sends the transactions of planned actions. An action may be repeated: a revert because it is done is expected."""

from __future__ import annotations

from typing import Any

from efedllm.chain.amounts import format_amount
from efedllm.chain.client import Chain
from efedllm.chain.reverts import RevertError
from efedllm.chain.types import TxResult
from efedllm.errors import ConfigError
from efedllm_verifier.attestation import commitment, prepare
from efedllm_verifier.metrics import VerifierMetrics
from efedllm_verifier.plan import ArmSeed, AuditNode, Claim, Commit, Finalize, FixSeed, Judge, Reveal, VerifierAction
from efedllm_verifier.store import AttestationStore

# Another verifier was first, or the chain's clock moved on between reading the state and the transaction.
EXPECTED = frozenset(
    {
        "AlreadyCommitted",
        "AlreadyJudged",
        "EpochNotOver",
        "NothingToClaim",
        "NothingToJudge",
        "NothingToReveal",
        "SeedAlreadyArmed",
        "SeedAlreadyFixed",
        "SeedExpired",
        "SeedNotReady",
        "WrongPhase",
    }
)


class ActionSender:
    """Sends the transactions of one verifier. `log` is a structlog logger."""

    def __init__(self, chain: Chain, store: AttestationStore, metrics: VerifierMetrics, log: Any) -> None:
        self._chain = chain
        self._store = store
        self._metrics = metrics
        self._log = log

    async def do(self, action: VerifierAction) -> None:
        """Carry out one action other than an audit. A revert is logged. Raises ChainError when the chain is down."""
        name = type(action).__name__
        try:
            result = await self._act(action)
        except RevertError as error:
            expected = error.name in EXPECTED
            (self._log.debug if expected else self._log.warning)("refused", duty=name, reason=str(error))
            self._metrics.transactions.labels(name, "late" if expected else "refused").inc()
            return
        self._metrics.transactions.labels(name, "done").inc()
        self._log.info("done", duty=name, tx=result.hash, gas=result.gas_used, **_fields(action))

    async def _act(self, action: VerifierAction) -> TxResult:
        contracts = self._chain.contracts
        match action:
            case ArmSeed(epoch):
                return await contracts.seat_registry.arm_seed(epoch)
            case FixSeed(epoch):
                return await contracts.seat_registry.fix_seed(epoch)
            case Commit():
                return await self._commit(action)
            case Reveal(epoch):
                return await self._reveal(epoch)
            case Finalize(epoch, nodes):
                return await contracts.verifier_committee.finalize(epoch, nodes)
            case Judge(epoch, verifier, nodes):
                return await contracts.verifier_committee.judge_verifier(epoch, verifier, nodes)
            case Claim(epochs):
                return await contracts.reward_pool.claim_verifier(epochs)
            case AuditNode():
                raise TypeError("audits are not transactions")

    async def _commit(self, action: Commit) -> TxResult:
        attestation = await self._store.attestation(action.epoch)
        if attestation is None:
            done, _ = await self._store.verdicts(action.epoch)
            chosen = [verdict for verdict in done if verdict.node in action.nodes]
            # Stored first: a commitment whose salt is lost can never be revealed.
            attestation = await self._store.put_attestation(prepare(action.epoch, chosen))
        committee = self._chain.address("VerifierCommittee")
        digest = commitment(attestation, self._chain.chain_id, committee, self._chain.account_address)
        result = await self._chain.contracts.verifier_committee.commit(action.epoch, digest)
        await self._store.note_commit(action.epoch, result.hash)
        return result

    async def _reveal(self, epoch: int) -> TxResult:
        attestation = await self._store.attestation(epoch)
        assert attestation is not None
        result = await self._chain.contracts.verifier_committee.reveal(
            epoch,
            attestation.nodes,
            attestation.verdicts,
            attestation.taps,
            attestation.evidence,
            attestation.salt,
        )
        await self._store.note_reveal(epoch, result.hash)
        return result


async def take_seat(chain: Chain, wanted: int | None, log: Any) -> None:
    """Stake up to `wanted` wei, or what a seat needs, and take a seat. Steps already done are skipped.

    Raises ConfigError "stake-too-low" or "insufficient-balance", ChainError where the contracts refuse.
    """
    me = chain.account_address
    needed = (await chain.contracts.seat_registry.terms()).seat_stake
    if wanted is not None and wanted < needed:
        raise ConfigError(
            "stake-too-low",
            f"A seat needs {format_amount(needed)}, --stake says {format_amount(wanted)}.",
            f"Pass --stake {format_amount(needed).removesuffix(' EFED')} or more.",
        )
    seated = any(seat.address == me for seat in await chain.verifiers())
    await _stake_up_to(chain, max(needed, wanted or 0), log, required=not seated)
    if seated:
        return
    try:
        result = await chain.contracts.seat_registry.take_seat()
    except RevertError as error:
        if error.name != "SeatTakenAlready":
            raise
        return
    log.info("seat taken", from_epoch=result.event("SeatTaken").args["activeFrom"], tx=result.hash)


async def _stake_up_to(chain: Chain, target: int, log: Any, *, required: bool) -> None:
    """Stake what is missing to `target`. Without `required`, only warn when the balance is too low: a seated verifier
    that was slashed keeps its seat and need not pay to restart."""
    me = chain.account_address
    missing = target - (await chain.contracts.stake_vault.stake_of(me)).active
    if missing <= 0:
        return
    balance = await chain.token_balance(me)
    if balance < missing:
        error = ConfigError(
            "insufficient-balance",
            f"{me} has {format_amount(balance)}, but {format_amount(missing)} more must be staked.",
            f"Send EFED to {me}.",
        )
        if required:
            raise error
        log.warning("stake below target", reason=str(error))
        return
    await chain.ensure_allowance("StakeVault", missing)
    result = await chain.contracts.stake_vault.stake(missing)
    log.info("staked", amount=format_amount(missing), tx=result.hash)


def _fields(action: VerifierAction) -> dict[str, Any]:
    shown = {key: value for key, value in action.__dict__.items() if key in ("epoch", "nodes", "verifier", "epochs")}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in shown.items()}
