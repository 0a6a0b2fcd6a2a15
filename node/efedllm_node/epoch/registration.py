"""Stake and registration: sends the transactions that make the chain agree with the configuration. The plan is pure."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from enum import Enum

from efedllm.chain import Chain, format_amount
from efedllm.chain.types import ModelInfo, NodeInfo
from efedllm.errors import ConfigError
from efedllm.logs import get_logger
from efedllm_node.config import NodeConfig

NONE, ACTIVE, PAUSED, RETIRED = 0, 1, 2, 3


class Action(Enum):
    """One transaction on the registry."""

    REGISTER = "register"
    UPDATE = "update"
    ENDPOINT = "endpoint"
    RESUME = "resume"


@dataclass(frozen=True)
class WantedRegistration:
    """What the node wants to be registered as."""

    model_id: bytes
    lo: int
    hi: int
    price: int
    signer: str
    shard_root: bytes
    endpoint: str


@dataclass(frozen=True)
class ServingTerms:
    """Model, layers and price in gwei: from the options, else from the registration."""

    model: ModelInfo
    lo: int
    hi: int
    price: int


def plan(current: NodeInfo, offer: WantedRegistration) -> tuple[Action, ...]:
    """The transactions that are missing, in order; none when the registration says it all.

    Raises ConfigError "other-registration" when only retiring could change it.
    """
    if current.status in (NONE, RETIRED):
        return (Action.REGISTER,)
    here = (current.model_id, current.lo, current.hi, current.shard_root)
    if here != (offer.model_id, offer.lo, offer.hi, offer.shard_root):
        raise ConfigError(
            "other-registration",
            f"This account is registered for layers {current.lo}:{current.hi} of model 0x{current.model_id.hex()}.",
            "Serve those, or retire first: `efedllm node unstake --retire`.",
        )
    actions = []
    if (current.price_per_ktok, current.signer) != (offer.price, offer.signer):
        actions.append(Action.UPDATE)
    if current.endpoint != offer.endpoint:
        actions.append(Action.ENDPOINT)
    if current.status == PAUSED:
        actions.append(Action.RESUME)
    return tuple(actions)


def missing_stake(active: int, wanted: int | None, minimum: int) -> int:
    """Wei to stake. Raises ConfigError "stake-too-low" when the node would stay below the registry's minimum."""
    target = active if wanted is None else max(active, wanted)
    if target < minimum:
        raise ConfigError(
            "stake-too-low",
            f"These layers need a stake of {format_amount(minimum)}; {format_amount(target)} is staked or asked for.",
            f"Pass --stake {format_amount(minimum, '')} or more, or serve fewer layers.",
        )
    return target - active


async def terms(chain: Chain, config: NodeConfig) -> ServingTerms:
    """Model, layers and price. Raises ConfigError "not-registered" when neither options nor registration have them."""
    current = await chain.node(chain.account_address)
    known = current if current.status in (ACTIVE, PAUSED) else None
    model_id = config.model_id or (known.model_id if known else None)
    layers = config.layers or ((known.lo, known.hi) if known else None)
    price = config.price if config.price is not None else (known.price_per_ktok if known else None)
    if model_id is None or layers is None or price is None:
        raise ConfigError(
            "not-registered",
            f"{chain.account_address} is not registered, so its model, layers and price must be given.",
            "Pass --model-id, --layers LO:HI and --price.",
        )
    model = await chain.model(model_id)
    if layers[1] > model.layers:
        raise ConfigError(
            "bad-layers",
            f"Layers {layers[0]}:{layers[1]} are not a range of this model, which has {model.layers} layers.",
            f"Use --layers LO:HI with HI at most {model.layers}.",
        )
    return ServingTerms(model, layers[0], layers[1], price)


async def ensure_stake(chain: Chain, lo: int, hi: int, wanted: int | None) -> int:
    """Stake what is missing; the wei added."""
    active, minimum = await asyncio.gather(
        chain.contracts.stake_vault.stake_of(chain.account_address), chain.contracts.node_registry.min_stake_per_layer()
    )
    missing = missing_stake(active.active, wanted, minimum * (hi - lo))
    if missing:
        await chain.ensure_allowance("StakeVault", missing)
        await chain.contracts.stake_vault.stake(missing)
        get_logger("registration").info("staked", amount=format_amount(missing))
    return missing


async def ensure_registered(chain: Chain, offer: WantedRegistration) -> tuple[Action, ...]:
    """Send what is missing; the actions taken. No transaction when nothing is."""
    actions = plan(await chain.node(chain.account_address), offer)
    for action in actions:
        match action:
            case Action.REGISTER:
                await chain.contracts.node_registry.register(
                    offer.model_id,
                    offer.lo,
                    offer.hi,
                    offer.price,
                    offer.signer,
                    offer.shard_root,
                    offer.endpoint,
                )
            case Action.UPDATE:
                await chain.contracts.node_registry.update(offer.price, offer.signer)
            case Action.ENDPOINT:
                await chain.contracts.node_registry.set_endpoint(offer.endpoint)
            case Action.RESUME:
                await chain.contracts.node_registry.resume()
        get_logger("registration").info("registry", action=action.value, layers=f"{offer.lo}:{offer.hi}")
    return actions


async def wait_for_signer(chain: Chain, signer: str, patience: float, pause: float) -> None:
    """Return once the registry names `signer`: a changed signer counts from the next epoch on.

    Raises ConfigError "signer-pending" after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while (await chain.node(chain.account_address)).signer != signer:
        if time.monotonic() > deadline:
            raise ConfigError(
                "signer-pending",
                f"The registry does not name {signer} as this node's signer yet.",
                "Start again after the next epoch has begun, or restore home/signer.json.",
            )
        await asyncio.sleep(pause)
