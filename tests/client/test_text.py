"""Incremental decoding against decoding everything at once, with real tokenizers built here."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from efedllm_client.text.decoder import REPLACEMENT, IncrementalDecoder

CORPUS = ["the quick brown fox jumps over the lazy dog", "naïve café über 日本語 Ελληνικά", "😀 emoji 👩‍👩‍👧"] * 4


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    return tokenizer


def metaspace() -> Tokenizer:
    """Llama's scheme: words start with a marker, and unknown characters fall back to bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=list("▁abcdefgh"))
    tokenizer.train_from_iterator(["the quick brown fox", "a bad cab fed a bee"], trainer)
    return tokenizer


BYTE_LEVEL = byte_level()
TEXT = st.text(st.sampled_from("the quick fox  \n日本語é😀👩‍👧Ω"), max_size=60)


@given(TEXT, TEXT)
@settings(max_examples=200, deadline=None)
def test_pieces_join_to_the_whole_text(context: str, text: str) -> None:
    decoder = IncrementalDecoder(BYTE_LEVEL, BYTE_LEVEL.encode(context).ids)
    pieces = [decoder.push(token) for token in BYTE_LEVEL.encode(text).ids]
    assert REPLACEMENT not in "".join(pieces)
    assert "".join([*pieces, decoder.flush()]) == text


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=80))
@settings(max_examples=200, deadline=None)
def test_arbitrary_ids_give_the_text_of_all_of_them(ids: list[int]) -> None:
    """A model may well emit broken UTF-8: what is not a character comes out as the replacement character."""
    decoder = IncrementalDecoder(BYTE_LEVEL)
    joined = "".join([*(decoder.push(token) for token in ids), decoder.flush()])
    whole = BYTE_LEVEL.decode(ids)
    assert joined.replace(REPLACEMENT, "") == whole.replace(REPLACEMENT, "")


def test_a_character_of_several_tokens_appears_once_it_is_whole() -> None:
    decoder = IncrementalDecoder(BYTE_LEVEL)
    pieces = [decoder.push(token) for token in BYTE_LEVEL.encode("😁").ids]
    assert len(pieces) > 1
    assert pieces == [""] * (len(pieces) - 1) + ["😁"]


def test_an_incomplete_character_comes_with_flush() -> None:
    decoder = IncrementalDecoder(BYTE_LEVEL)
    assert decoder.push(BYTE_LEVEL.encode("😁").ids[0]) == ""
    assert decoder.flush() == REPLACEMENT


@pytest.mark.parametrize("context", ["", "a bad"])
def test_the_space_before_a_word_is_kept_after_a_context(context: str) -> None:
    tokenizer = metaspace()
    words = tokenizer.encode("the fox").ids
    decoder = IncrementalDecoder(tokenizer, tokenizer.encode(context).ids if context else [])
    text = "".join(decoder.push(token) for token in words) + decoder.flush()
    assert text == (" the fox" if context else "the fox")


def test_long_outputs_do_not_grow_the_window() -> None:
    decoder = IncrementalDecoder(BYTE_LEVEL)
    ids = BYTE_LEVEL.encode("the quick brown fox " * 100).ids
    assert "".join(decoder.push(token) for token in ids) == "the quick brown fox " * 100
    assert len(decoder._ids) <= IncrementalDecoder.WINDOW
