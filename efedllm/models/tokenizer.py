"""Opening a model's tokenizer. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, which cuts and pads nothing: what such a file says about lengths is about
    batches of sentences, and a text is taken as it is. Raises what the library raises for a file it cannot read.
    """
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
