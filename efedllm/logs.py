"""Structured logs on stderr. Secrets never get in: their keys are blanked wherever they turn up."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any, ClassVar

_SECRET = ("password", "private_key", "secret", "mnemonic", "salt", "authorization")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def _blank_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in event:
        if any(word in key.lower() for word in _SECRET):
            event[key] = "***"
    return event


def _readable(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, bytes | bytearray):
            event[key] = "0x" + bytes(value).hex()
    return event


def setup(level: str = "info", log_format: str = "console") -> None:
    """Send logs to stderr; `log_format` is "console" or "json" (one object a line)."""
    # Libraries log through the standard module.
    logging.basicConfig(stream=sys.stderr, level=max(_LEVELS.get(level, logging.INFO), logging.WARNING))
    Logger.configure = partial(_configure, level, log_format)


def _configure(level: str, log_format: str) -> None:
    import structlog

    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _blank_secrets,
        _readable,
    ]
    if log_format == "json":
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS.get(level, logging.INFO)),
        # Looked up for every line: whoever redirects stderr later also gets the logs; nobody writes to a closed one.
        logger_factory=lambda *_args: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


class Logger:
    """Logs through structlog, which is imported by the first line: it brings rich and pygments, slow to load."""

    configure: ClassVar[Callable[[], None] | None] = None
    """What is left to do of the last `setup`."""

    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        import structlog

        if Logger.configure is not None:
            wanted, Logger.configure = Logger.configure, None
            wanted()
        return getattr(structlog.get_logger(**self._fields), name)


def get_logger(name: str) -> Any:
    """A logger whose lines carry `component=name`; fields are keyword arguments."""
    return Logger(component=name)
