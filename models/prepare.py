"""Training data of the bundled model: the Python standard library's own source, and a tokenizer trained on it."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"
END_ID = 0
_SKIPPED = {"site-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__", "turtledemo"}
# Larger files below encodings/ are character tables, not code.
_MAX_ENCODING_CHARS = 20_000
# Lines with their indentation, words, digits one by one, runs of punctuation, other whitespace.
_PIECES = r"\n[ ]*| ?[A-Za-z_]+| ?\d| ?[^\sA-Za-z_\d]+|\s+"
_CALIBRATION_FILES = 10


@dataclass(frozen=True)
class Corpus:
    """Documents, one per source file."""

    train: list[str]
    held_out: list[str]


@dataclass(frozen=True)
class Tokens:
    """Token ids, uint16 [n]: every document is preceded by END_ID."""

    train: npt.NDArray[np.uint16]
    held_out: npt.NDArray[np.uint16]


def read_corpus(library: Path | None = None, limit: int | None = None) -> Corpus:
    """Read `library` (this Python's standard library by default), at most `limit` files.

    About one file in 26 is held out, chosen by the hash of its name, so that the choice does not depend on the machine.
    """
    root = library or Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in root.rglob("*.py") if not set(p.relative_to(root).parts) & _SKIPPED)
    train: list[str] = []
    held_out: list[str] = []
    for path in files[:limit]:
        text = path.read_text("utf-8", errors="ignore")
        if "encodings" in path.parts and len(text) > _MAX_ENCODING_CHARS:
            continue
        held = hashlib.sha256(path.name.encode()).digest()[0] < 10
        (held_out if held else train).append(text)
    if not train or not held_out:
        raise SystemExit(f"error: {root} has too few Python files for a training and a held-out part")
    return Corpus(train, held_out)


def train_tokenizer(documents: list[str], vocab: int) -> Tokenizer:
    """Byte-level BPE of `vocab` tokens; id 0 is END_OF_TEXT, put before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A $B", special_tokens=[(END_OF_TEXT, END_ID)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> npt.NDArray[np.uint16]:
    """The documents one after the other; the tokenizer begins each with END_ID."""
    return np.array([i for encoding in tokenizer.encode_batch(documents) for i in encoding.ids], dtype=np.uint16)


def prepare(out: Path, vocab: int, library: Path | None = None, limit: int | None = None) -> Tokens:
    """Write tokenizer files, held-out.txt and calibration.txt into `out`; returns the tokens to train on.

    The tokenizer in `out`, if any, is used again, so that a resumed training sees the same tokens.
    """
    corpus = read_corpus(library, limit)
    path = out / "tokenizer.json"
    if path.is_file():
        tokenizer = Tokenizer.from_file(str(path))
    else:
        tokenizer = train_tokenizer(corpus.train, vocab)
        tokenizer.save(str(path))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "held-out.txt").write_text("".join(corpus.held_out), "utf-8")
    stride = max(1, len(corpus.train) // _CALIBRATION_FILES)
    (out / "calibration.txt").write_text("".join(corpus.train[::stride][:_CALIBRATION_FILES]), "utf-8")
    return Tokens(encode(tokenizer, corpus.train), encode(tokenizer, corpus.held_out))
