"""One account's transactions: nonces in order, fees, simulation, receipts, and resends that never pay twice."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from efedllm.chain.amounts import format_amount
from efedllm.chain.connection import LOCAL_CHAIN_IDS, Rpc, RpcError
from efedllm.chain.journal import Journal, Pending
from efedllm.chain.reverts import RevertError, decode_revert
from efedllm.errors import ChainError

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

Receipt = dict[str, Any]

_NONCE_TRIES = 8
_GAS_NOISE = 10_000
_REBROADCAST_EVERY = 5.0
_DEFAULT_TIP = 10**9

_KNOWN = ("already known", "known transaction", "already imported", "already exists")
_NONCE = (
    "nonce too low",
    "correct nonce",
    "nonce is too low",
    "invalid nonce",
    "underpriced",
    "oldnonce",
    "be replaced",
)


class _NonceTakenError(Exception):
    """Another transaction of this account has the nonce, so ours can never be mined."""


class Sender:
    """Signs and sends for one account on one chain. All sends of a process share one Sender per account.

    `timeout` seconds bound the wait for a receipt.
    """

    def __init__(
        self, rpc: Rpc, account: LocalAccount, chain_id: int, *, journal: Path | None = None, timeout: float = 180.0
    ) -> None:
        self._rpc = rpc
        self._account = account
        self._chain_id = chain_id
        self._journal = Journal(journal)
        self._timeout = timeout
        self._poll = 0.05 if chain_id in LOCAL_CHAIN_IDS else 0.5
        self._lock = asyncio.Lock()
        self._in_flight = 0
        self._next_nonce = 0

    async def transact(self, to: str | None, data: bytes, value: int, what: str) -> Receipt:
        """Simulate, sign, send and wait for the receipt. `to` None creates a contract.

        A call that failed with "rpc-down" or "tx-timeout" (or was cancelled) may be repeated with the same arguments:
        the identical signed transaction is sent again. Raises RevertError or ChainError.
        """
        to = None if to is None else to_checksum_address(to)
        payload = keccak(
            text=f"{self._chain_id}|{self._account.address}|{to}|{data.hex()}|{value}",
        ).hex()
        pending: Pending | None = None
        try:
            async with self._lock:
                pending = await self._resume(payload)
                if pending is None:
                    pending = await self._sign_and_broadcast(to, data, value, what, payload)
                self._in_flight += 1
            try:
                receipt = await self._wait(pending, what)
            finally:
                self._in_flight -= 1
        except _NonceTakenError as error:
            if pending is not None:
                self._journal.finish(pending)
            raise ChainError(
                "tx-replaced",
                f"Another transaction of {self._account.address} took the place of {what}.",
                "Use one program per account at a time, and try again.",
            ) from error
        except BaseException:
            if pending is not None:
                self._journal.orphan(pending)
            raise
        self._journal.finish(pending)
        if int(receipt["status"], 16) != 1:
            raise await self._why(to, data, value, what, receipt)
        return receipt

    async def _resume(self, payload: str) -> Pending | None:
        """A transaction with this payload that an earlier call left behind, sent again; None when there is none."""
        pending = self._journal.adopt(payload)
        if pending is None:
            return None
        try:
            await self._broadcast(pending)
        except _NonceTakenError:
            self._journal.finish(pending)
            return None
        except BaseException:
            self._journal.orphan(pending)
            raise
        return pending

    async def _sign_and_broadcast(self, to: str | None, data: bytes, value: int, what: str, payload: str) -> Pending:
        for attempt in range(_NONCE_TRIES):
            gas, block, chain_nonce = await asyncio.gather(
                self._estimate(to, data, value, what),
                self._rpc.request("eth_getBlockByNumber", ["latest", False]),
                self._rpc.integer("eth_getTransactionCount", [self._account.address, "pending"]),
            )
            # Nodes may count pending transactions late: while ours are in flight, our own count leads.
            nonce = max(chain_nonce, self._next_nonce) if self._in_flight else chain_nonce
            transaction: dict[str, Any] = {
                "chainId": self._chain_id,
                "nonce": nonce,
                "data": data,
                "value": value,
                # A random last part: two programs that wish the same at once must not sign the same transaction,
                # or each would take the other's payment for its own.
                "gas": min(gas + gas // 4 + 20_000, int(block["gasLimit"], 16) - _GAS_NOISE)
                + secrets.randbelow(_GAS_NOISE),
                **await self._fees(block),
            }
            if to is not None:
                transaction["to"] = to
            signed = self._account.sign_transaction(transaction)
            pending = Pending(
                payload=payload,
                raw="0x" + bytes(signed.raw_transaction).hex(),
                hash="0x" + bytes(signed.hash).hex(),
                nonce=nonce,
                created=time.time(),
            )
            self._journal.start(pending)
            try:
                await self._broadcast(pending)
            except _NonceTakenError:
                self._journal.finish(pending)
                self._next_nonce = 0
                await asyncio.sleep(self._poll * (attempt + 1))
                continue
            except RpcError as error:
                self._journal.finish(pending)
                raise await self._refused(error, transaction, what) from error
            except BaseException:
                # Nobody knows whether it arrived.
                self._journal.orphan(pending)
                raise
            self._next_nonce = nonce + 1
            return pending
        raise ChainError(
            "nonce-busy",
            f"{what} could not be sent: other programs keep using the account {self._account.address}.",
            "Use one program per account at a time.",
        )

    async def _estimate(self, to: str | None, data: bytes, value: int, what: str) -> int:
        """Gas used, by simulation; a revert is raised here, before anything is paid."""
        call = self._call(to, data, value)
        try:
            return await self._rpc.integer("eth_estimateGas", [call])
        except RpcError as error:
            if error.data:
                raise decode_revert(error.data, what) from error
            if not error.is_revert:
                raise await self._refused(error, {"value": value}, what) from error
        # Some servers give the revert data only for eth_call.
        try:
            await self._rpc.request("eth_call", [call, "latest"])
        except RpcError as error:
            raise (decode_revert(error.data or b"", what) if error.is_revert else error) from error
        raise ChainError("gas-unknown", f"The chain could not estimate the gas of {what}.", "Check --rpc.")

    def _call(self, to: str | None, data: bytes, value: int) -> dict[str, str]:
        call = {"from": self._account.address, "data": "0x" + data.hex(), "value": hex(value)}
        return call if to is None else {**call, "to": to}

    async def _fees(self, block: dict[str, Any]) -> dict[str, int]:
        base = block.get("baseFeePerGas")
        if base is None:
            return {"gasPrice": await self._rpc.integer("eth_gasPrice")}
        try:
            tip = await self._rpc.integer("eth_maxPriorityFeePerGas")
        except RpcError:
            tip = _DEFAULT_TIP
        return {"maxPriorityFeePerGas": tip, "maxFeePerGas": 2 * int(base, 16) + tip}

    async def _broadcast(self, pending: Pending) -> None:
        try:
            await self._rpc.request("eth_sendRawTransaction", [pending.raw])
        except RpcError as error:
            text = error.text.lower()
            if any(mark in text for mark in _KNOWN) or await self._is_known(pending):
                return
            if any(mark in text for mark in _NONCE):
                raise _NonceTakenError from error
            raise

    async def _is_known(self, pending: Pending) -> bool:
        """The chain has this transaction, so an error about it only means that it came twice."""
        return await self._rpc.request("eth_getTransactionByHash", [pending.hash]) is not None

    async def _wait(self, pending: Pending, what: str) -> Receipt:
        deadline = time.monotonic() + self._timeout
        again = time.monotonic() + _REBROADCAST_EVERY
        pause = self._poll
        while True:
            receipt: Receipt | None = await self._rpc.request("eth_getTransactionReceipt", [pending.hash])
            if receipt is not None and receipt.get("blockNumber") is not None:
                return receipt
            now = time.monotonic()
            if now > deadline:
                raise ChainError(
                    "tx-timeout",
                    f"{what} ({pending.hash}) was not mined within {self._timeout:.0f} s.",
                    "Try again: the same transaction is sent, never a second one.",
                )
            if now > again:
                # The server may have lost its pool, e.g. by a restart.
                await self._broadcast(pending)
                again = now + _REBROADCAST_EVERY
            await asyncio.sleep(pause)
            pause = min(pause * 1.2, max(self._poll, 0.1 if self._chain_id in LOCAL_CHAIN_IDS else 2.0))

    async def _refused(self, error: RpcError, transaction: dict[str, Any], what: str) -> ChainError:
        if error.data or error.is_revert:
            return decode_revert(error.data or b"", what)
        if "insufficient funds" in error.text.lower() or "enough funds" in error.text.lower():
            balance = await self._rpc.integer("eth_getBalance", [self._account.address, "latest"])
            price = transaction.get("maxFeePerGas", transaction.get("gasPrice", 0))
            needed = int(transaction["value"]) + int(transaction.get("gas", 0)) * int(price)
            return ChainError(
                "insufficient-funds",
                f"{self._account.address} has {format_amount(balance, 'ETH')} and {what} may need "
                f"{format_amount(needed, 'ETH')} for gas.",
                "Send ETH to this address first.",
            )
        return error

    async def _why(self, to: str | None, data: bytes, value: int, what: str, receipt: Receipt) -> ChainError:
        """The reason of a transaction that was mined and reverted: replay it on the state before its block."""
        before = hex(max(0, int(receipt["blockNumber"], 16) - 1))
        for block in (before, "latest"):
            try:
                await self._rpc.request("eth_call", [self._call(to, data, value), block])
            except RpcError as error:
                return decode_revert(error.data or b"", what)
        return RevertError(
            "Unknown",
            {"hash": receipt["transactionHash"]},
            f"{what} was mined in block {int(receipt['blockNumber'], 16)} but reverted (state changed, or out of gas).",
            "Try again.",
        )
