"""Pieces of Markdown that every reader of it shows alike."""

from __future__ import annotations


def cell(text: str) -> str:
    """`text` on one line, with what would end a cell of a table or begin a tag escaped outside code spans."""
    spans = " ".join(text.split()).split("`")
    outside = [span.replace("<", "&lt;") if index % 2 == 0 else span for index, span in enumerate(spans)]
    return "`".join(outside).replace("|", "\\|")


def code(text: str) -> str:
    """`text` as a code span in a cell of a table."""
    return "`" + " ".join(text.split()).replace("|", "\\|") + "`"
