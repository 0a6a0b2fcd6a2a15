"""Decodes the custom errors of the contracts, and adds a hint what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from eth_abi.abi import decode as abi_decode
from eth_abi.exceptions import DecodingError

from efedllm.chain.amounts import format_amount
from efedllm.chain.artifacts import CONTRACTS, artifact
from efedllm.chain.codec import canonical_type, from_abi, selector
from efedllm.errors import ChainError

_ERROR_STRING = bytes.fromhex("08c379a0")
_PANIC = bytes.fromhex("4e487b71")
_PANICS = {
    0x01: "assertion failed",
    0x11: "arithmetic overflow",
    0x12: "division by zero",
    0x21: "bad enum value",
    0x32: "index out of bounds",
    0x41: "out of memory",
}

# Below this an unsigned number is a count, a time or a price; from here on an amount of EFED.
_AMOUNT_FROM = 10**12

# Error name -> what to do next. Names are unique over all our contracts, or mean the same where they are not.
HINTS: dict[str, str] = {
    "AccessControlUnauthorizedAccount": "Use the account that holds this role, normally the deployer.",
    "AlreadyCommitted": "Nothing to do: the commitment for this epoch is on chain already.",
    "AlreadyJudged": "Nothing to do: this verifier's epoch is judged already.",
    "AlreadyProven": "Nothing to do: the node has been slashed for this job and hop.",
    "AlreadyRegistered": "Retire the old registration first: see `efedllm node status`.",
    "CapExceeded": "Mint less: the supply is capped.",
    "ERC20InsufficientAllowance": "Approve the contract for this amount first.",
    "ERC20InsufficientBalance": "Get more EFED into this wallet: see `efedllm wallet balance`.",
    "EmptyWeightsRoot": "Compress the model again and publish the result.",
    "EntryIsPaused": "Try later: a guardian has closed the entry; exits, settlements and claims stay open.",
    "EpochNotOver": "Wait until the epoch is over.",
    "InsufficientBalance": "Deposit more with `efedllm wallet deposit AMOUNT`.",
    "InsufficientStake": "Stake more with --stake AMOUNT, or unbond less.",
    "InvalidSignature": "The message was signed by another key than the session names.",
    "LayersOutOfBounds": "Give a layer range of the model: see `efedllm network`.",
    "BadLayerRange": "Give --layers LO:HI within the model's layers: see `efedllm network`.",
    "ModelNotActive": "Choose another model: see `efedllm network`.",
    "NodeExcluded": "Choose another route: this node failed its audits.",
    "NodeJailed": "Choose another route: this node is jailed for now.",
    "NodeNotActive": "Choose another route: see `efedllm network`.",
    "NotClaimable": "Claim from two epochs after the work on.",
    "NotFinalized": "Wait for the verdict: the committee still has to finalize this node's epoch.",
    "NotReady": "Wait until the unbonding period is over, then withdraw again.",
    "NotSignedByNode": "This proves nothing against the node: check the file with `efedllm dispute check FILE`.",
    "NotSeated": "Take a seat first: `efedllm verifier run --stake AMOUNT`.",
    "NothingAtStake": "Try again once the node has staked: the proof stays good.",
    "NothingToClaim": "Nothing to do: this account earned nothing in these epochs, or has claimed it.",
    "ProbationCapExceeded": "Open the session with a smaller deposit: nodes without a record carry only small ones.",
    "RouteGap": "Choose nodes whose layers join without gap or overlap: see `efedllm network`.",
    "RouteIncomplete": "Add nodes up to the model's last layer: see `efedllm network`.",
    "RouteTooExpensive": "Raise the maximum price, or choose cheaper nodes: see `efedllm network`.",
    "SeatStakeTooLow": "Stake more with `efedllm verifier run --stake AMOUNT`.",
    "SeatTakenAlready": "Nothing to do: the verifier holds its seat already.",
    "SessionExists": "Open the session with another nonce.",
    "SessionExpired": "Open a new session.",
    "StakeLocked": "Wait until the open case against this stake is decided.",
    "StakeTooLow": "Stake more with --stake AMOUNT, or serve fewer layers.",
    "StaleVoucher": "Nothing to do: a newer voucher is settled already.",
    "TooEarlyToClose": "Wait until the grace period of the session is over.",
    "UnknownModel": "Publish the model first with `efedllm model publish`, or check --model-id.",
    "VoucherExceedsDeposit": "Top the session up, or open one with a larger deposit.",
    "WrongNodeStatus": "See `efedllm node status`.",
    "WrongPhase": "Wait for the right part of the epoch and try again.",
    "WrongSequence": "Read the node's next sequence number from the chain and post again.",
    "WrongSessionStatus": "Open a new session: this one is closed or was never opened.",
}


class RevertError(ChainError):
    """A call or transaction that a contract refused. `name` and `args` are the decoded custom error."""

    def __init__(self, name: str, args: dict[str, Any], message: str, hint: str) -> None:
        super().__init__(f"revert:{name}", message, hint)
        self.name = name
        self.values = args


@cache
def _known_errors() -> dict[bytes, dict[str, Any]]:
    return error_table(item for name in CONTRACTS for item in artifact(name).abi)


def error_table(abi: Iterable[Mapping[str, Any]]) -> dict[bytes, dict[str, Any]]:
    """Custom errors of ABI entries by their four byte selector."""
    return {selector(item): dict(item) for item in abi if item["type"] == "error"}


def _words(name: str) -> str:
    """ "InsufficientStake" -> "insufficient stake"."""
    spaced = "".join(
        f" {letter}" if letter.isupper() and index and not name[index - 1].isupper() else letter
        for index, letter in enumerate(name)
    )
    return spaced.lower().replace("erc20", "ERC-20 ").replace("  ", " ")


def _text(kind: str, value: Any) -> str:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if kind.startswith("uint") and isinstance(value, int) and value >= _AMOUNT_FROM and value < 2**128:
        return format_amount(value)
    return str(value)


def decode_revert(data: bytes, what: str, table: Mapping[bytes, dict[str, Any]] | None = None) -> RevertError:
    """The RevertError for raw revert data of the call named `what`, e.g. "SessionEscrow.open". Never raises."""
    head, body = data[:4], data[4:]
    if head == _ERROR_STRING:
        try:
            reason = str(abi_decode(["string"], body)[0])
        except (DecodingError, UnicodeDecodeError):
            reason = "unreadable reason"
        return RevertError("Error", {"reason": reason}, f"{what} reverted: {reason}.", "")
    if head == _PANIC:
        code = int.from_bytes(body[:32], "big")
        return RevertError("Panic", {"code": code}, f"{what} reverted: {_PANICS.get(code, f'panic {code:#x}')}.", "")
    known = _known_errors() if table is None else table
    item = known.get(head)
    if item is None:
        shown = f"unknown error 0x{data[:36].hex()}" if data else "without a reason"
        return RevertError("Unknown", {"data": data}, f"{what} reverted: {shown}.", "Check --deployment and --rpc.")
    try:
        values = abi_decode([canonical_type(part) for part in item["inputs"]], body)
    except DecodingError:
        return RevertError(item["name"], {}, f"{what} reverted: {_words(item['name'])}.", HINTS.get(item["name"], ""))
    args = {
        part["name"] or f"arg{index}": from_abi(part, value)
        for index, (part, value) in enumerate(zip(item["inputs"], values, strict=True))
    }
    details = ", ".join(
        f"{name} {_text(part['type'], value)}" for part, (name, value) in zip(item["inputs"], args.items(), strict=True)
    )
    message = f"{what} refused: {_words(item['name'])}{f' ({details})' if details else ''}."
    return RevertError(item["name"], args, message, HINTS.get(item["name"], ""))
