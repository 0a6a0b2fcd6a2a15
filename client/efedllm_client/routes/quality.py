"""The certified quality of compressed models, and choosing a model by it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from efedllm.chain import Chain
from efedllm.chain.types import ModelInfo
from efedllm.errors import ConfigError, ModelError
from efedllm.models.certificate import Certificate
from efedllm.models.manifest import Manifest
from efedllm.models.source import WeightSource, is_url
from efedllm_client.config import ClientConfig
from efedllm_client.routes.choose import Candidate, choose_route
from efedllm_client.routes.discovery import MODEL_ACTIVE, choose_model, find_candidates, short_id


@dataclass(frozen=True)
class ModelCard:
    """A registered model with its manifest, or `problem`: why the manifest could not be had."""

    model: ModelInfo
    manifest: Manifest | None
    problem: str = ""

    @property
    def certificate(self) -> Certificate | None:
        """As registered: the manifest's hash is checked against the chain."""
        return None if self.manifest is None else self.manifest.certificate

    @property
    def quality(self) -> float | None:
        """See `quality`."""
        return None if self.certificate is None else quality(self.certificate)


@dataclass(frozen=True)
class ModelOffer:
    """A model that a route serves. `price`: gwei of EFED per 1000 tokens of the cheapest route."""

    card: ModelCard
    price: int


def quality(certificate: Certificate) -> float:
    """Perplexity of the original over that of the published model, on the certified text where it is lowest.

    1.0: nothing lost; 0.98: the perplexity is 2 % higher.
    """
    return min(text.perplexity_original / text.perplexity for text in certificate.texts)


def card_json(card: ModelCard) -> dict[str, Any]:
    """What `efedllm network` says about a model beside its registration."""
    if card.manifest is None or card.certificate is None:
        reason = card.problem or "the publisher certified nothing"
        return {"method": None if card.manifest is None else card.manifest.method, "certificate": None, "why": reason}
    found = card.certificate
    return {
        "method": card.manifest.method,
        "certificate": found.model_dump(mode="json"),
        "quality": round(quality(found), 6),
        "bytes_saved": found.bytes_saved,
    }


async def fetch_card(model: ModelInfo, endpoints: Sequence[str]) -> ModelCard:
    """The model's manifest, from its own location or its nodes, checked against the chain."""
    locations = [model.uri] if is_url(model.uri) else []
    locations += [endpoint.rstrip("/") + "/v1/model" for endpoint in endpoints]
    if not locations:
        return ModelCard(model, None, "nobody serves its manifest")
    known = model.manifest_hash if any(model.manifest_hash) else None
    try:
        manifest = await WeightSource(locations).manifest(model.weights_root, known)
    except ModelError as error:
        return ModelCard(model, None, error.message)
    certified = manifest.certificate is not None and any(model.certificate_hash)
    if certified and manifest.certificate is not None and manifest.certificate.hash() != model.certificate_hash:
        return ModelCard(model, None, "its certificate is not the registered one")
    return ModelCard(model, manifest)


async def find_offers(chain: Chain, models: Sequence[ModelInfo], seconds: float) -> list[ModelOffer]:
    """Offers for those of `models` that are active and served by a route. `seconds`: for the probes."""
    active = [model for model in models if model.status == MODEL_ACTIVE]
    candidates = await asyncio.gather(*(find_candidates(chain, model, seconds) for model in active))
    priced: dict[bytes, int] = {}
    for model, nodes in zip(active, candidates, strict=True):
        price = _price(nodes, model)
        if price is not None:
            priced[model.model_id] = price
    cards = await asyncio.gather(
        *(
            fetch_card(model, [node.endpoint for node in nodes if node.usable])
            for model, nodes in zip(active, candidates, strict=True)
            if model.model_id in priced
        )
    )
    return [ModelOffer(card, priced[card.model.model_id]) for card in cards]


def _price(candidates: Sequence[Candidate], model: ModelInfo) -> int | None:
    try:
        return sum(hop.price for hop in choose_route(candidates, model.layers).hops)
    except ConfigError:
        return None


def choose_by_quality(offers: Sequence[ModelOffer], least: float) -> ModelInfo:
    """The cheapest offer of at least this quality, at equal prices the best. Pure function.

    Raises ConfigError "bad-option", "quality-too-low" when there is none, "choose-model" when those that are good
    enough were made from different originals.
    """
    if not 0.0 < least <= 1.0:
        raise ConfigError("bad-option", "--min-quality must be above 0 and at most 1.", "0.98 allows 2 % perplexity.")
    known = [(offer, found) for offer in offers if (found := offer.card.quality) is not None]
    fit = [(offer, found) for offer, found in known if found >= least]
    if not fit:
        best = max((found for _, found in known), default=None)
        said = "no served model has a certificate" if best is None else f"the best served model has {best:.4f}"
        raise ConfigError("quality-too-low", f"--min-quality is {least:g}; {said}.", "`efedllm network` lists them.")
    originals = {offer.card.certificate.original for offer, _ in fit if offer.card.certificate is not None}
    if len(originals) > 1:
        ids = ", ".join(short_id(offer.card.model.model_id) for offer, _ in fit)
        raise ConfigError("choose-model", f"Different models are good enough: {ids}.", "Choose one with --model.")
    return min(fit, key=lambda pair: (pair[0].price, -pair[1], pair[0].card.model.model_id))[0].card.model


async def find_model_by_quality(
    chain: Chain, wanted: str | None, least: float, seconds: float = ClientConfig.probe_seconds
) -> ModelInfo:
    """As `discovery.find_model`, with a floor on certified quality. Raises as `choose_by_quality`."""
    models = await chain.models()
    if wanted is not None:
        models = [choose_model(models, wanted)]
    return choose_by_quality(await find_offers(chain, models, seconds), least)
