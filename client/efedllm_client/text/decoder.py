"""Token ids to text, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"  # what a tokenizer prints for bytes that are not yet a whole character


class Decoder(Protocol):
    """The one method of `tokenizers.Tokenizer` that decoding needs."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class IncrementalDecoder:
    """Gives the text that each new token adds; the pieces joined equal the text of all tokens after the context.

    A token alone may be part of a character, or decode differently at the start of a text (a leading space is dropped),
    so each step decodes a short window with and without the new tokens and returns the difference.
    """

    WINDOW = 16  # tokens of context kept: more than any character or word marker needs

    def __init__(self, tokenizer: Decoder, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = list(context)[-self.WINDOW :]
        self._shown = len(self._ids)  # tokens whose text has been returned

    def push(self, token: int) -> str:
        """Text added by `token`; empty while a character is incomplete."""
        self._ids.append(token)
        piece = self._pending()
        if piece.endswith(REPLACEMENT) and len(self._ids) - self._shown < self.WINDOW:
            return ""
        self._commit()
        return piece

    def flush(self) -> str:
        """Text of tokens still held back, incomplete characters included."""
        piece = self._pending()
        self._commit()
        return piece

    def _pending(self) -> str:
        before = self._decode(self._ids[: self._shown])
        whole = self._decode(self._ids)
        return whole[len(before) :] if whole.startswith(before) else whole[common_prefix(before, whole) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _commit(self) -> None:
        self._ids = self._ids[-self.WINDOW :]
        self._shown = len(self._ids)


def common_prefix(first: str, second: str) -> int:
    """Length of the longest common prefix."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))
