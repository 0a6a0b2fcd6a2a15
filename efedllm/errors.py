"""Expected errors, shown to the user: a message that says what is wrong, and a hint what to do next."""

from __future__ import annotations

import errno


class EfedError(Exception):
    """Base of every expected failure.

    `code` is stable and machine readable (it travels in ERROR frames and in `--json` output); `hint` says what to do
    next.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ProtocolError(EfedError):
    """A peer sent something malformed, oversized, unsigned or out of order."""


class ChainError(EfedError):
    """The chain refused a call, is the wrong one, or cannot be reached."""


class ModelError(EfedError):
    """A published model is missing, incomplete or does not match its hashes."""


class ConfigError(EfedError):
    """Settings or arguments do not fit together."""


def file_error(error: OSError) -> ConfigError | None:
    """The error to show for a file or folder that cannot be used; None when `error` is about something else."""
    if error.filename is None:
        return None
    return ConfigError(
        "bad-path",
        f"{error.filename} cannot be used: {error.strerror}.",
        "Check the path and its permissions.",
    )


def listen_error(host: str, port: int, error: OSError) -> ConfigError:
    """The ConfigError for a failed listen on host:port: "port-in-use" when the port is taken, else "bad-listen"."""
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            "port-in-use",
            f"Port {port} of {host} is in use.",
            "Is the same program running already? Or choose another --listen.",
        )
    reason = error.strerror or str(error)
    return ConfigError("bad-listen", f"{host}:{port} cannot be listened on: {reason}.", "Use --listen HOST:PORT.")
