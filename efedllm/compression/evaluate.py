"""Measuring a published model against its original, and certifying it in its manifest."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from efedllm.compression.report import load_report
from efedllm.engine.protocol import StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.errors import ConfigError, ModelError
from efedllm.models.certificate import Certificate, TextQuality
from efedllm.models.checkpoint import Checkpoint, resolve
from efedllm.models.families import FAMILIES, read_config
from efedllm.models.manifest import Manifest
from efedllm.models.tokenizer import open_tokenizer

WINDOW = 512
HELD_OUT = ("held-out.txt", "held-out-2.txt")
_DIGITS = 9

EvaluateProgress = Callable[[int, int], None]
"""Called with (windows done, windows in total)."""


@dataclass(frozen=True)
class EvaluateOptions:
    """model: published folder, its manifest is rewritten; original: folder or hub id; texts: held-out text files,
    without any those named held-out.txt and held-out-2.txt beside the original; window: tokens that the models see at a
    time; tokens: at most this many of each text."""

    model: Path
    original: str
    texts: Sequence[Path] = ()
    window: int = WINDOW
    tokens: int | None = None


def evaluate(options: EvaluateOptions, progress: EvaluateProgress | None = None) -> Manifest:
    """Measure `options.model` as the engine serves it, write the certificate into its manifest and return that.

    The weights root stays; the manifest's hash, which is registered on chain, changes: evaluate before publishing.
    Both models are in memory in float32. Raises ConfigError "bad-options" or "no-text", ModelError "not-published",
    "other-model" or "corrupt-weights".
    """
    if options.window < 2 or (options.tokens is not None and options.tokens < 2):
        raise ConfigError(
            "bad-options", "Evaluation needs windows of at least 2 tokens.", "Leave --window and --tokens out."
        )
    manifest = Manifest.load(options.model)
    source = resolve(options.original)
    config = read_config(source)
    said = (manifest.model_type, manifest.layers, manifest.hidden, manifest.vocab)
    if said != (config.model_type, config.num_hidden_layers, config.hidden_size, config.vocab_size):
        raise ModelError(
            "other-model",
            f"{options.model} was not made from {options.original}: their shapes differ.",
            "Give the checkpoint it was compressed from.",
        )
    window = min(options.window, int(config.max_position_embeddings))
    paths = options.texts or [source / name for name in HELD_OUT if (source / name).is_file()]
    if not paths:
        raise ConfigError("no-text", f"{source.name} has no {HELD_OUT[0]} beside it.", "Give --text FILE.")
    texts = [_read(path, source, window, options.tokens, manifest.vocab) for path in paths]
    engine = ShardEngine.load(options.model, 0, manifest.layers, verify_root=manifest.root)
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True).eval()
    total = sum(len(text.windows) for text in texts)
    done = 0
    measured = []
    for text in texts:
        tally = _Tally()
        for ids in text.windows:
            with torch.inference_mode():
                wanted = original(ids.unsqueeze(0)).logits[0]
            tally.add(ids, wanted, _logits(engine, ids))
            done += 1
            if progress is not None:
                progress(done, total)
        measured.append(tally.quality(text))
    return _certify(options.model, manifest, source, window, measured)


@dataclass(frozen=True)
class _Text:
    name: str
    sha256: str
    windows: tuple[Tensor, ...]


def _read(path: Path, source: Path, window: int, limit: int | None, vocab: int) -> _Text:
    """int64 windows [n]; only the last is shorter, and dropped below 2 tokens."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError("no-text", f"The text {path} cannot be read.", "Give a text file with --text.") from error
    tokenizer = source / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelError("no-tokenizer", f"{source} has no tokenizer.json.", "Add the model's tokenizer.")
    found = open_tokenizer(tokenizer).encode(data.decode("utf-8", errors="replace")).ids[:limit]
    if len(found) < 2:
        raise ConfigError("no-text", f"The text {path} is empty.", "Give a longer text.")
    if max(found) >= vocab:
        raise ModelError(
            "no-tokenizer", "The tokenizer has more tokens than the model.", "Use the model's own tokenizer."
        )
    windows = tuple(part for part in torch.split(torch.tensor(found), window) if len(part) > 1)
    return _Text(path.name, hashlib.sha256(data).hexdigest(), windows)


def _logits(engine: ShardEngine, ids: Tensor) -> Tensor:
    states = engine.step([StepItem(engine.new_sequence(), ids.numpy().astype(np.int32))])[0]
    return torch.from_numpy(engine.logits(states))


class _Tally:
    def __init__(self) -> None:
        self._tokens = 0
        self._losses = [0.0, 0.0]
        self._kl = 0.0
        self._agreed = 0

    def add(self, ids: Tensor, original: Tensor, published: Tensor) -> None:
        """One window: logits [n, vocab] of both. The last position predicts a token outside and does not count."""
        p, q = (torch.log_softmax(logits[:-1].double(), dim=1) for logits in (original, published))
        for index, logs in enumerate((p, q)):
            self._losses[index] += float(cross_entropy(logs, ids[1:], reduction="sum"))
        self._kl += float((p.exp() * (p - q)).sum())
        self._agreed += int((p.argmax(dim=1) == q.argmax(dim=1)).sum())
        self._tokens += len(ids) - 1

    def quality(self, text: _Text) -> TextQuality:
        original, published = (math.exp(loss / self._tokens) for loss in self._losses)
        return TextQuality(
            name=text.name,
            sha256=text.sha256,
            tokens=self._tokens,
            perplexity=round(published, _DIGITS),
            perplexity_original=round(original, _DIGITS),
            kl=round(self._kl / self._tokens, _DIGITS),
            top1=round(self._agreed / self._tokens, _DIGITS),
        )


def _certify(directory: Path, manifest: Manifest, source: Path, window: int, measured: list[TextQuality]) -> Manifest:
    checkpoint = Checkpoint(source, FAMILIES[manifest.model_type].base)
    digest = hashlib.sha256()
    for name in checkpoint.weight_files:
        with (source / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    stored, dense = manifest.matrix_bytes()
    report = load_report(directory, manifest.weights_root)
    certificate = Certificate(
        original=digest.hexdigest(),
        window=window,
        bytes=stored,
        bytes_saved=round(1 - stored / dense, _DIGITS),
        texts=tuple(measured),
        method=manifest.method,
        budget=manifest.budget,
        heal=manifest.heal,
        calibration=manifest.calibration,
        ranks={t.name: t.rank for t in manifest.tensors if t.rank},
        seconds=None if report is None else report.seconds,
        peak_memory=None if report is None else report.peak_memory,
    )
    certified = manifest.model_copy(update={"certificate": certificate})
    certified.save(directory)
    return certified
