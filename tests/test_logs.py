"""Logs go to whatever stderr is now, and carry no secrets."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr

import pytest
import structlog

from efedllm import logs


@pytest.fixture(autouse=True)
def default_configuration() -> Iterator[None]:
    """Later tests find the library as they would have without these."""
    yield
    structlog.reset_defaults()


def test_a_logger_follows_a_redirected_stderr() -> None:
    first, second = io.StringIO(), io.StringIO()
    with redirect_stderr(first):
        logs.setup("info", "json")
        log = logs.get_logger("part")
        log.info("one")
    first.close()
    with redirect_stderr(second):
        log.info("two", payload=b"\x01\xff")
    line = json.loads(second.getvalue())
    assert (line["event"], line["component"], line["payload"]) == ("two", "part", "0x01ff")


@pytest.mark.parametrize("key", ["password", "keystore_password", "salt", "private_key"])
def test_secrets_are_blanked(key: str) -> None:
    out = io.StringIO()
    with redirect_stderr(out):
        logs.setup("info", "json")
        logs.get_logger("part").info("opened", **{key: "hunter2"})
    assert "hunter2" not in out.getvalue()
    assert json.loads(out.getvalue())[key] == "***"


def test_levels_are_honoured() -> None:
    out = io.StringIO()
    with redirect_stderr(out):
        logs.setup("warning")
        log = logs.get_logger("part")
        log.info("quiet")
        log.warning("loud")
    assert "loud" in out.getvalue()
    assert "quiet" not in out.getvalue()
