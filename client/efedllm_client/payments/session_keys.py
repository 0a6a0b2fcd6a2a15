"""Session keys: one per session, encrypted under the wallet's key, so that only the wallet's owner can use them."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from efedllm.chain.deployment import write_json
from efedllm.commitments.signing import Signer
from efedllm.errors import ConfigError

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

_PURPOSE = b"EFL.session-signers.1"
# The password below has 256 bits of entropy, so stretching it would only cost time.
_ITERATIONS = 1


def create_signer(directory: Path, wallet: LocalAccount) -> Signer:
    """A fresh key, written (mode 0600) before it is returned."""
    from eth_keyfile.keyfile import create_keyfile_json

    key = secrets.token_bytes(32)
    signer = Signer(key)
    document = create_keyfile_json(key, _password(wallet), kdf="pbkdf2", iterations=_ITERATIONS)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(_path(directory, signer.address), document, mode=0o600)
    return signer


def load_signer(directory: Path, wallet: LocalAccount, address: str) -> Signer:
    """The key made earlier. Raises ConfigError "no-signer" when it is missing or belongs to another wallet."""
    from eth_keyfile.keyfile import decode_keyfile_json

    path = _path(directory, address)
    try:
        document = cast(Any, json.loads(path.read_text()))
        signer = Signer(decode_keyfile_json(document, _password(wallet)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "no-signer",
            f"The session key {path} cannot be opened with this wallet.",
            "Use the wallet and the home directory that opened the session.",
        ) from error
    if signer.address != address:
        raise ConfigError("no-signer", f"{path} holds another key than its name says.", "Open a new session.")
    return signer


def _path(directory: Path, address: str) -> Path:
    return directory / f"{address.lower()}.json"


def _password(wallet: LocalAccount) -> bytes:
    return hmac.new(bytes(wallet.key), _PURPOSE, hashlib.sha256).hexdigest().encode()
