"""Typed asynchronous access to the contracts: connection, transactions, readers, events, ledger."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efedllm.chain.amounts import format_amount, parse_amount
    from efedllm.chain.client import Chain
    from efedllm.chain.deployment import Deployment
    from efedllm.chain.types import ChainEvent, ChainTime, TxResult

__all__ = ["Chain", "ChainEvent", "ChainTime", "Deployment", "TxResult", "format_amount", "parse_amount"]

_MODULES = {
    "Chain": "client",
    "ChainEvent": "types",
    "ChainTime": "types",
    "Deployment": "deployment",
    "TxResult": "types",
    "format_amount": "amounts",
    "parse_amount": "amounts",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: who formats an amount or reads a deployment needs no connection.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
