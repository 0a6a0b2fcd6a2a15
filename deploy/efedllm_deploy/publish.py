"""Registering a published model on chain, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eth_abi.abi import encode as abi_encode
from eth_utils.crypto import keccak

from efedllm.errors import ChainError

if TYPE_CHECKING:
    from efedllm.chain import Chain
    from efedllm.models.manifest import Manifest

_NONE, _ACTIVE = 0, 1


@dataclass(frozen=True)
class PublishedModel:
    """A model on chain; `tx` is empty when it was there already."""

    model_id: bytes
    weights_root: bytes
    manifest_hash: bytes
    uri: str
    tx: str
    gas: int


def salt_of(manifest: Manifest) -> bytes:
    """Equal models of one owner get equal ids, so that publishing twice registers once."""
    return keccak(manifest.hash())


def model_id(owner: str, salt: bytes) -> bytes:
    """keccak256(abi.encode(owner, salt)), as ModelRegistry computes it."""
    return keccak(abi_encode(["address", "bytes32"], [owner, salt]))


async def publish(chain: Chain, directory: Path, uri: str = "") -> PublishedModel:
    """Register the model in `directory` for this account. `uri`: where nodes can fetch it, may be empty.

    Raises ModelError when the directory is not a published model, ChainError "model-deprecated".
    """
    from efedllm.chain.contracts import ModelParams
    from efedllm.models.manifest import Manifest

    manifest = Manifest.load(directory)
    salt = salt_of(manifest)
    identity = model_id(chain.account_address, salt)
    status = (await chain.contracts.model_registry.shape_of(identity)).status
    if status == _NONE:
        params = ModelParams(
            weights_root=manifest.root,
            layers=manifest.layers,
            hidden=manifest.hidden,
            rank_bps=manifest.rank_bps,
            quant=manifest.quant_code,
            profile=manifest.profile_code,
            constants_hash=manifest.constants_hash,
            certificate_hash=manifest.certificate_hash,
        )
        result = await chain.contracts.model_registry.register(salt, params, manifest.hash(), uri)
        return PublishedModel(identity, manifest.root, manifest.hash(), uri, result.hash, result.gas_used)
    if status != _ACTIVE:
        raise ChainError(
            "model-deprecated",
            f"The model 0x{identity.hex()} was deprecated by its owner.",
            "Publish another version of it.",
        )
    known = await chain.model(identity)
    return PublishedModel(identity, manifest.root, manifest.hash(), known.uri, "", 0)
