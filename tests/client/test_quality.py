"""Choosing a model by what its certificate says, and reading the certificate over real HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from efedllm.chain.types import ModelInfo
from efedllm.errors import ConfigError
from efedllm.models.certificate import Certificate, TextQuality
from efedllm.models.manifest import Manifest
from efedllm_client.routes.quality import ModelCard, ModelOffer, card_json, choose_by_quality, fetch_card, quality
from efedllm_deploy.serve import model_app, start_server

ORIGINAL = "11" * 32


def certificate(increase: float, original: str = ORIGINAL) -> Certificate:
    texts = tuple(
        TextQuality(
            name=f"text-{i}",
            sha256="00" * 32,
            tokens=100,
            perplexity=12.0 * (1 + share * increase),
            perplexity_original=12.0,
            kl=0.0,
            top1=0.9,
        )
        for i, share in enumerate((0.5, 1.0))
    )
    return Certificate(original=original, window=512, bytes=1000, bytes_saved=0.7, texts=texts)


def model(first: int, manifest: Manifest | None = None) -> ModelInfo:
    info = ModelInfo(bytes([first]) * 32, "0x", bytes(32), bytes(32), 8, 8, 10_000, 0, 0, 1, "", 1)
    if manifest is None:
        return info
    found = manifest.certificate
    return replace(
        info,
        weights_root=manifest.root,
        manifest_hash=manifest.hash(),
        certificate_hash=bytes(32) if found is None else found.hash(),
    )


def offer(plain: Manifest, first: int, price: int, made: Certificate | None) -> ModelOffer:
    manifest = plain.model_copy(update={"certificate": made})
    return ModelOffer(ModelCard(model(first, manifest), manifest), price)


@pytest.fixture(scope="module")
def plain(published: Callable[..., Path]) -> Manifest:
    return Manifest.load(published("llama"))


def test_quality_is_that_of_the_worst_text() -> None:
    assert quality(certificate(0.25)) == pytest.approx(0.8)
    assert quality(certificate(0.0)) == 1.0


def test_the_cheapest_of_the_good_enough_is_chosen(plain: Manifest) -> None:
    offers = [
        offer(plain, 1, 30, certificate(0.0)),
        offer(plain, 2, 10, certificate(0.01)),
        offer(plain, 3, 5, certificate(0.10)),
        offer(plain, 4, 1, None),
    ]
    assert choose_by_quality(offers, 0.999).model_id == bytes([1]) * 32
    assert choose_by_quality(offers, 0.98).model_id == bytes([2]) * 32
    assert choose_by_quality(offers, 0.5).model_id == bytes([3]) * 32
    same_price = [offer(plain, 1, 7, certificate(0.05)), offer(plain, 2, 7, certificate(0.01))]
    assert choose_by_quality(same_price, 0.9).model_id == bytes([2]) * 32


@pytest.mark.parametrize("least", [0.0, -1.0, 1.01, float("nan")])
def test_a_floor_that_is_none_is_refused(plain: Manifest, least: float) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_by_quality([offer(plain, 1, 1, certificate(0.0))], least)
    assert refused.value.code == "bad-option"


def test_nothing_good_enough_says_what_there_is(plain: Manifest) -> None:
    with pytest.raises(ConfigError) as low:
        choose_by_quality([offer(plain, 1, 1, certificate(0.25)), offer(plain, 2, 1, None)], 0.9)
    assert low.value.code == "quality-too-low"
    assert "0.8000" in low.value.message
    with pytest.raises(ConfigError) as none:
        choose_by_quality([offer(plain, 2, 1, None)], 0.9)
    assert none.value.code == "quality-too-low"


def test_models_of_different_originals_are_not_alike(plain: Manifest) -> None:
    offers = [offer(plain, 1, 3, certificate(0.0)), offer(plain, 2, 2, certificate(0.0, "22" * 32))]
    with pytest.raises(ConfigError) as unclear:
        choose_by_quality(offers, 0.9)
    assert unclear.value.code == "choose-model"


async def test_a_card_is_what_the_chain_registered(plain: Manifest, published: Callable[..., Path]) -> None:
    directory = published("llama")
    runner, port = await start_server(model_app(directory, plain), "127.0.0.1", 0)
    try:
        url = f"http://127.0.0.1:{port}"
        card = await fetch_card(replace(model(1, plain), uri=url), [])
        assert card.manifest == plain
        assert card.quality is None
        assert card_json(card)["certificate"] is None
        forged = replace(model(1, plain), uri=url, manifest_hash=b"\x07" * 32)
        refused = await fetch_card(forged, [])
        assert refused.manifest is None
        assert refused.problem
    finally:
        await runner.cleanup()
    assert (await fetch_card(model(1, plain), [])).problem == "nobody serves its manifest"
