"""The node's directory and port: one process each, and the hot key that signs for the node."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from efedllm.chain import keystore
from efedllm.commitments.signing import Signer
from efedllm.errors import ConfigError, listen_error

LOCK_FILE = "node.lock"
SIGNER_FILE = "signer.json"


class HomeLock:
    """Keeps a second process out of the same home for as long as this one lives; a crash releases it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, home: Path) -> HomeLock:
        """Raises ConfigError "home-in-use" or "bad-home"."""
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(home / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError("bad-home", f"{home} cannot be used: {error.strerror}.", "Check --home.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise ConfigError(
                "home-in-use", f"Another node process uses {home}.", "Stop it, or pass another --home."
            ) from None
        return cls(descriptor)

    def release(self) -> None:
        """Let the next process in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any. Raises ConfigError "port-in-use" or "bad-listen"."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(
            "bad-listen", f"{host!r} is no address of this machine.", "Use --listen HOST:PORT."
        ) from error
    try:
        # A port left by a process that just ended is free; one that somebody listens on is not.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise listen_error(host, port, error) from error
    bound.setblocking(False)
    return bound


def load_signer(home: Path, password: str, light: bool) -> Signer:
    """The node's hot key, made at the first start and kept encrypted under the account's password."""
    path = home / SIGNER_FILE
    if not path.exists():
        keystore.create(path, password, light=light)
    return Signer(bytes(keystore.load(path, password).key))
