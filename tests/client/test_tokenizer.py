"""Fetching a model's tokenizer: checked against the chain, kept, and refused when anything differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from tokenizers import Tokenizer, models, pre_tokenizers

from efedllm.chain.types import ModelInfo
from efedllm.errors import ConfigError, ModelError
from efedllm.models.manifest import Manifest
from efedllm_client.text.chat import Conversation, first_answer, format_turns
from efedllm_client.text.tokenizer import eos_ids, load_tokenizer, read_tokenizer

NOWHERE = "http://127.0.0.1:1"


def registered(directory: Path, uri: str = "") -> ModelInfo:
    manifest = Manifest.load(directory)
    return ModelInfo(
        model_id=bytes(32),
        owner="0x",
        weights_root=manifest.root,
        manifest_hash=manifest.hash(),
        layers=manifest.layers,
        hidden=manifest.hidden,
        rank_bps=manifest.rank_bps,
        quant=manifest.quant_code,
        profile=0,
        status=1,
        uri=uri,
        block=1,
    )


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[tuple[str, list[str]]]:
    """A node's model routes over `directory`; the paths asked for are listed."""
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        asked.append(name)
        return web.FileResponse(directory / name)

    app = web.Application()
    app.router.add_get("/v1/model/{name}", handler)
    app.router.add_get("/v1/model/files/{name}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


@pytest.fixture
def directory(published: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of the published bundled model."""
    return Path(shutil.copytree(published("bundled"), tmp_path / "model"))


async def test_a_node_serves_it_once_and_no_weights_are_fetched(directory: Path, tmp_path: Path) -> None:
    model = registered(directory, uri=NOWHERE)
    async with serving(directory) as (endpoint, asked):
        text = await load_tokenizer(model, [NOWHERE, endpoint], tmp_path / "models")
    assert not [name for name in asked if name.endswith(".safetensors")]
    whole = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert text.encode("def main():") == whole.encode("def main():").ids
    assert text.context == json.loads((directory / "config.json").read_text())["max_position_embeddings"]
    # Nobody is there any more: the copy at home does.
    again = await load_tokenizer(model, [NOWHERE], tmp_path / "models")
    assert again.encode("x = 1") == text.encode("x = 1")


async def test_a_changed_tokenizer_is_refused(directory: Path, tmp_path: Path) -> None:
    model = registered(directory)
    (directory / "tokenizer.json").write_text((directory / "tokenizer.json").read_text() + " ")
    async with serving(directory) as (endpoint, _):
        with pytest.raises(ModelError) as caught:
            await load_tokenizer(model, [endpoint], tmp_path / "models")
    assert caught.value.code == "corrupt-weights"
    assert "tokenizer.json" in caught.value.message


async def test_another_models_manifest_is_refused(directory: Path, tmp_path: Path) -> None:
    model = registered(directory)
    other = ModelInfo(**{**model.__dict__, "weights_root": bytes([1]) * 32})
    async with serving(directory) as (endpoint, _):
        with pytest.raises(ModelError) as caught:
            await load_tokenizer(other, [endpoint], tmp_path / "models")
    assert caught.value.code == "wrong-root"


async def test_another_manifest_over_the_same_weights_is_refused(directory: Path, tmp_path: Path) -> None:
    model = registered(directory)
    other = ModelInfo(**{**model.__dict__, "manifest_hash": bytes([1]) * 32})
    with pytest.raises(ModelError) as caught:
        await load_tokenizer(ModelInfo(**{**other.__dict__, "uri": str(directory)}), [], tmp_path / "models")
    assert caught.value.code == "wrong-manifest"


async def test_nobody_has_it(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        await load_tokenizer(registered(directory), [NOWHERE], tmp_path / "models")
    assert caught.value.code == "source-unreachable"


async def test_lengths_and_conversations_keep_within_the_context(directory: Path, tmp_path: Path) -> None:
    text = await load_tokenizer(registered(directory, str(directory)), [], tmp_path / "models")
    assert text.context is not None
    with pytest.raises(ConfigError, match="exceed the model's context"):
        text.check_length(text.context, 1)
    conversation = Conversation(text)
    for index in range(200):
        conversation.add(f"question {index}", f"answer {index}\nUser: invented")
    ids = conversation.prompt("last question", 64)
    assert len(ids) + 64 <= text.context
    shown = text.decode(ids)
    assert shown.endswith("User: last question\nAssistant:")
    assert "answer 199" in shown
    assert "invented" not in shown
    assert "answer 0\n" not in shown


def test_chat_format() -> None:
    assert format_turns([("a", "b")], "c") == "User: a\nAssistant: b\nUser: c\nAssistant:"
    assert first_answer(" yes \nUser: and?") == "yes"


def test_end_tokens_from_the_best_source() -> None:
    tokenizer = Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": None,
                "post_processor": None,
                "decoder": None,
                "model": {"type": "WordLevel", "vocab": {"<end>": 7}, "unk_token": "<end>"},
            }
        )
    )
    assert eos_ids({"eos_token_id": 1}, {}, {"eos_token_id": [2, 3]}, tokenizer) == (2, 3)
    assert eos_ids({"eos_token_id": 1}, {}, {}, tokenizer) == (1,)
    assert eos_ids({"eos_token_id": None}, {"eos_token": "<end>"}, {}, tokenizer) == (7,)
    assert eos_ids({}, {"eos_token": {"content": "<end>"}}, {}, tokenizer) == (7,)
    assert eos_ids({}, {}, {}, tokenizer) == ()


def test_a_tokenizer_made_for_batches_of_sentences_neither_cuts_nor_pads(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1, "[PAD]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4, pad_id=2, pad_token="[PAD]")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).encode("a a a a a a") == [0] * 6
    assert read_tokenizer(tmp_path).encode("a") == [0]
