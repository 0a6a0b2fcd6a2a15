"""Buying inference from the network: wallet, routes, paid sessions, receipts. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efedllm_client.api import Client
    from efedllm_client.jobs.options import GenerateOptions

__all__ = ["Client", "GenerateOptions"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `efedllm --help` should not wait for the chain library.
    if name == "Client":
        from efedllm_client.api import Client

        return Client
    if name == "GenerateOptions":
        from efedllm_client.jobs.options import GenerateOptions

        return GenerateOptions
    raise AttributeError(f"module 'efedllm_client' has no attribute {name!r}")
