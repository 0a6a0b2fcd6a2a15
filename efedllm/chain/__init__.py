"""Typed asynchronous access to the contracts: connection, transactions, readers, events, ledger."""

from efedllm.chain.amounts import format_amount, parse_amount
from efedllm.chain.client import Chain
from efedllm.chain.deployment import Deployment
from efedllm.chain.types import ChainEvent, ChainTime, TxResult

__all__ = ["Chain", "ChainEvent", "ChainTime", "Deployment", "TxResult", "format_amount", "parse_amount"]
