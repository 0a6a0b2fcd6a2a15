"""Hot keys: one per session, encrypted under the wallet's key, so that only the wallet's owner can use them."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from pathlib import Path

from efedllm.chain import keyfile
from efedllm.chain.account import LocalAccount
from efedllm.chain.deployment import write_json
from efedllm.commitments.signing import Signer
from efedllm.errors import ConfigError

_PURPOSE = b"EFL.session-signers.1"
# The password below has 256 bits of entropy, so stretching it would only cost time.
_ITERATIONS = 1


def create_signer(directory: Path, wallet: LocalAccount) -> Signer:
    """A fresh key, written (mode 0600) before it is returned."""
    key = secrets.token_bytes(32)
    signer = Signer(key)
    document = keyfile.encrypt(key, _password(wallet), keyfile.pbkdf2(_ITERATIONS))
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(_path(directory, signer.address), document, mode=0o600)
    return signer


def load_signer(directory: Path, wallet: LocalAccount, address: str) -> Signer:
    """The key made earlier. Raises ConfigError "no-signer" when it is missing or belongs to another wallet."""
    path = _path(directory, address)
    try:
        signer = Signer(keyfile.decrypt(json.loads(path.read_text()), _password(wallet)))
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
