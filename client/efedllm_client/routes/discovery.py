"""Discovery: models and nodes from the chain, and a probe of how fast each node answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import aiohttp

from efedllm.chain import Chain
from efedllm.chain.types import ModelInfo, NodeInfo
from efedllm.errors import ConfigError, ProtocolError
from efedllm_client.config import ClientConfig
from efedllm_client.http import get_json
from efedllm_client.routes.choose import Candidate

MAX_INFO_BYTES = 64 * 1024
MODEL_ACTIVE = 1


async def find_model(chain: Chain, wanted: str | None) -> ModelInfo:
    """The model whose id is or starts with `wanted`; without `wanted`, the only active one.

    Raises ConfigError "unknown-model" or "choose-model".
    """
    return choose_model(await chain.models(), wanted)


def choose_model(models: Sequence[ModelInfo], wanted: str | None) -> ModelInfo:
    """See `find_model`."""
    active = [model for model in models if model.status == MODEL_ACTIVE]
    if wanted is None:
        if len(active) == 1:
            return active[0]
        if not active:
            raise ConfigError(
                "unknown-model", "No model is registered on this network.", "Publish one with `efedllm model publish`."
            )
        ids = ", ".join(short_id(model.model_id) for model in active)
        raise ConfigError("choose-model", f"This network has {len(active)} models: {ids}.", "Choose one with --model.")
    prefix = wanted.strip().lower().removeprefix("0x")
    matches = [model for model in models if prefix and model.model_id.hex().startswith(prefix)]
    if len(matches) != 1:
        what = f"{wanted!r} is not a model of this network." if not matches else f"{wanted!r} is not unique."
        raise ConfigError("unknown-model", what, "`efedllm network` lists the models.")
    return matches[0]


def short_id(model_id: bytes) -> str:
    """First eight digits of an id, enough to type after --model."""
    return "0x" + model_id.hex()[:8]


async def find_candidates(
    chain: Chain, model: ModelInfo, seconds: float = ClientConfig.probe_seconds
) -> list[Candidate]:
    """Every registered node of a model with the result of a probe, in layer order. Takes at most about `seconds`."""
    nodes = await chain.nodes(model.model_id)
    found = await probe_all(nodes, chain.chain_id, seconds)
    return sorted(found, key=lambda c: (c.lo, c.hi, c.address))


async def probe_all(
    nodes: Sequence[NodeInfo], chain_id: int, seconds: float = ClientConfig.probe_seconds
) -> list[Candidate]:
    """Probe nodes at once, for at most `seconds`."""
    timeout = aiohttp.ClientTimeout(total=seconds)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        return list(await asyncio.gather(*(probe(http, node, chain_id) for node in nodes)))


async def probe(http: aiohttp.ClientSession, node: NodeInfo, chain_id: int) -> Candidate:
    """Ask a node who it is and how busy it is, and measure the round trip; or say why there is no usable answer."""
    latency: float | None = None
    info: dict[str, Any] = {}
    problem = ""
    base = node.endpoint.rstrip("/")
    try:
        info = await _info(http, base)
        problem = identity_problem(info, node, chain_id)
        # The connection is open now, and this answer needs no work: what is left is the round trip.
        started = time.perf_counter()
        health = await http.get(base + "/healthz", allow_redirects=False)
        latency = (time.perf_counter() - started) * 1000
        health.release()
        if health.status != 200:
            problem = problem or "it is shutting down"
    except (aiohttp.ClientError, OSError, ValueError, TimeoutError, ProtocolError) as error:
        problem = problem or describe(error)
    queue = info.get("queue", 0)
    return Candidate(
        address=node.address,
        signer=node.signer,
        endpoint=node.endpoint,
        lo=node.lo,
        hi=node.hi,
        price=node.price_per_ktok,
        trust_ppm=node.trust_ppm,
        standing=node.standing,
        status=node.status,
        latency_ms=None if problem else latency,
        queue=queue if isinstance(queue, int) and not isinstance(queue, bool) and queue >= 0 else 0,
        shard_root=node.shard_root,
        problem=problem,
    )


async def _info(http: aiohttp.ClientSession, base: str) -> dict[str, Any]:
    info = await get_json(http, base + "/v1/info", MAX_INFO_BYTES)
    if not isinstance(info, dict):
        raise ProtocolError("bad-message", "its answer is no object")
    return info


def identity_problem(info: dict[str, Any], node: NodeInfo, chain_id: int) -> str:
    """Why an answer is not this node's; empty when it is. Its signature is checked later, when a job opens."""
    if str(info.get("node", "")).lower() != node.address.lower():
        return f"another node ({info.get('node')}) answers there"
    if info.get("chain_id") != chain_id:
        return f"it serves chain {info.get('chain_id')}"
    return ""


def describe(error: BaseException) -> str:
    """Short reason of a failed request."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect ({error.os_error.strerror or type(error.os_error).__name__})"
    return str(error) or type(error).__name__
