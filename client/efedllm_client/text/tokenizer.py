"""The tokenizer of a registered model: fetched from any source, checked by hash, kept in the home directory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from efedllm.chain.types import ModelInfo
from efedllm.errors import ConfigError, ModelError
from efedllm.models.manifest import ENCODERS
from efedllm.models.source import WeightSource, is_url
from efedllm.models.tokenizer import open_tokenizer

TOKENIZER_FILE = "tokenizer.json"
OPTIONAL_FILES = ("config.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class ModelTokenizer:
    """The tokenizer of a model, and what else a client needs to know of the model's files."""

    tokenizer: Tokenizer
    eos: tuple[int, ...]  # ids that end a text; the first is sent to the nodes
    bos: int | None
    context: int | None  # most positions, None when the config does not say
    is_encoder: bool = False

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, at least one. Raises ConfigError "empty-prompt"."""
        ids: list[int] = self.tokenizer.encode(text).ids
        if not ids and self.bos is not None:
            return [self.bos]
        if not ids:
            raise ConfigError("empty-prompt", "The prompt is empty.", "Give some text.")
        return ids

    def check_task(self, *, embeds: bool) -> None:
        """Raises ConfigError "wrong-task" when the model does not do what is asked of it."""
        if embeds != self.is_encoder:
            does = "an encoder, which generates no text" if self.is_encoder else "no encoder"
            raise ConfigError(
                "wrong-task", f"This model is {does}.", "Use `efedllm embed` with encoders; see `efedllm network`."
            )

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def check_length(self, prompt: int, new: int) -> None:
        """Raises ConfigError "too-long" when prompt and new tokens do not fit the model's context."""
        if self.context is not None and prompt + new > self.context:
            raise ConfigError(
                "too-long",
                f"{prompt} prompt and {new} new tokens exceed the model's context of {self.context}.",
                "Shorten the prompt or lower --max-tokens.",
            )


async def load_tokenizer(model: ModelInfo, endpoints: Sequence[str], models_dir: Path) -> ModelTokenizer:
    """Fetch (once) and load the tokenizer of `model`.

    Sources in order: the cache in `models_dir`, the model's own location on chain, the nodes at `endpoints`. Everything
    is checked against the weights root and manifest hash registered on chain. Raises ModelError.
    """
    directory = models_dir / model.manifest_hash.hex()
    locations: list[str | Path] = [directory] if await asyncio.to_thread((directory / "manifest.json").exists) else []
    if is_url(model.uri) or await asyncio.to_thread(_is_directory, model.uri):
        locations.append(model.uri)
    locations += [endpoint.rstrip("/") + "/v1/model" for endpoint in endpoints]
    source = WeightSource(locations)
    manifest = await source.manifest(model.weights_root, model.manifest_hash)
    listed = {info.name for info in manifest.files}
    if TOKENIZER_FILE not in listed:
        raise ModelError(
            "no-tokenizer", f"The model has no {TOKENIZER_FILE}.", "Ask its publisher to add a fast tokenizer."
        )
    await source.fetch([TOKENIZER_FILE, *(name for name in OPTIONAL_FILES if name in listed)], directory)
    return await asyncio.to_thread(read_tokenizer, directory)


def read_tokenizer(directory: Path) -> ModelTokenizer:
    """Load the files that `load_tokenizer` fetched. Raises ModelError "bad-tokenizer"."""
    try:
        tokenizer = open_tokenizer(directory / TOKENIZER_FILE)
    except Exception as error:
        raise ModelError(
            "bad-tokenizer", f"{TOKENIZER_FILE} cannot be read: {error}.", "Ask the model's publisher for another."
        ) from error
    config, settings, generation = (_json(directory / name) for name in OPTIONAL_FILES)
    return ModelTokenizer(
        tokenizer=tokenizer,
        eos=eos_ids(config, settings, generation, tokenizer),
        bos=bos if isinstance(bos := config.get("bos_token_id"), int) else None,
        context=context_length(config),
        is_encoder=config.get("model_type") in ENCODERS,
    )


def eos_ids(
    config: dict[str, Any], settings: dict[str, Any], generation: dict[str, Any], tokenizer: Tokenizer
) -> tuple[int, ...]:
    """End-of-text ids, best source first: generation_config, config, then the token named by tokenizer_config."""
    for source in (generation, config):
        value = source.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        if ids and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            return tuple(ids)
    named = settings.get("eos_token")
    content = named.get("content") if isinstance(named, dict) else named
    found = tokenizer.token_to_id(content) if isinstance(content, str) else None
    return () if found is None else (found,)


def context_length(config: dict[str, Any]) -> int | None:
    """Most positions a model takes, by the names the families use."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_directory(uri: str) -> bool:
    return bool(uri) and Path(uri).is_dir()
