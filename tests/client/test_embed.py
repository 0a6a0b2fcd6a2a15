"""Embedding texts: what is refused before anything is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from client.embed import Embedding
from client.embed_cli import collect
from client.routed import Place
from efedllm.errors import ConfigError


def test_a_text_without_tokens_opens_no_session() -> None:
    # The place is where sessions are opened: it must not be looked at.
    with pytest.raises(ConfigError) as caught:
        Embedding(cast(Place, None), [[1, 2], []])
    assert caught.value.code == "empty-prompt"


def test_the_texts_of_a_command_line(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo\n")
    assert collect(["three"], lines) == ["one", "two", "three"]
    lines.write_bytes(b"\xff\xfe\x00")
    for unreadable in (lines, tmp_path / "none"):
        with pytest.raises(ConfigError) as caught:
            collect([], unreadable)
        assert caught.value.code == "bad-option"
    with pytest.raises(ConfigError) as caught:
        collect([" "], None)
    assert caught.value.code == "empty-prompt"
