"""The home folder of a local network: a lock for one process, and the ports of the last run."""

from __future__ import annotations

import fcntl
import socket
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from efedllm.errors import ConfigError
from efedllm.settings import read_network


def lock_home(home: Path) -> IO[str]:
    """Lock the home for this process. The lock ends when the result is closed or the process ends.

    Raises ConfigError "home-busy" or "bad-home".
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle = (home / "lock").open("w")
    except OSError as error:
        raise ConfigError("bad-home", f"{home} cannot be used: {error.strerror}.", "Check --home.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise ConfigError(
            "home-busy", f"Another network runs in {home}.", "Stop it, or choose another folder with --home."
        ) from error
    return handle


def usable(port: int | None) -> int | None:
    """`port` when it can be listened on now."""
    if port is None:
        return None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return None
    return port


def last_chain_port(home: Path) -> int | None:
    """The port on which the chain ran last time."""
    return urlsplit(str(read_network(home).get("rpc_url", ""))).port


def last_node_ports(home: Path) -> dict[str, int]:
    """The ports on which the nodes listened last time, by name."""
    ports = {}
    for node in read_network(home).get("nodes", []):
        port = urlsplit(str(node.get("endpoint", ""))).port
        if port is not None:
            ports[str(node.get("name"))] = port
    return ports
