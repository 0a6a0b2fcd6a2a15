"""Encrypted account files (Web3 Secret Storage v3, the format of geth and MetaMask)."""

from __future__ import annotations

import json
import os
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING

from efedllm.chain.deployment import write_json
from efedllm.errors import ConfigError

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

PASSWORD_VARIABLE = "EFEDLLM_PASSWORD"

# scrypt cost. Light is for throw-away local keys: it opens in milliseconds.
STANDARD_N = 2**18
LIGHT_N = 2**12


def create(path: Path, password: str, light: bool = False, private_key: bytes | None = None) -> str:
    """Write a new keystore (mode 0600) and return its checksum address. Never overwrites.

    Raises ConfigError "keystore-exists" or "empty-password".
    """
    if path.exists():
        raise ConfigError(
            "keystore-exists", f"{path} exists already.", "Choose another file name: keys are never overwritten."
        )
    if not password:
        raise ConfigError("empty-password", "The password is empty.", "Pass --password-file with a password in it.")
    # Imported here: it takes most of a second, which commands without a key do not need.
    from eth_account import Account

    account = Account.from_key(private_key) if private_key is not None else Account.create()
    encrypted = Account.encrypt(account.key, password, kdf="scrypt", iterations=LIGHT_N if light else STANDARD_N)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(path, encrypted, mode=0o600)
    return str(account.address)


def load(path: Path, password: str) -> LocalAccount:
    """Decrypt a keystore. Raises ConfigError "no-keystore", "bad-keystore" or "wrong-password"."""
    from eth_account import Account

    try:
        encrypted = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            "no-keystore", f"There is no keystore {path}.", "Make one with `efedllm wallet new`."
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            "bad-keystore", f"{path} cannot be read as a keystore.", "Restore the file from your backup."
        ) from error
    try:
        account: LocalAccount = Account.from_key(Account.decrypt(encrypted, password))
    except ValueError as error:
        # eth_keyfile reports a wrong password as a MAC mismatch.
        if "MAC" in str(error):
            raise ConfigError(
                "wrong-password",
                f"The password does not open {path}.",
                f"Check --password-file, or the environment variable {PASSWORD_VARIABLE}.",
            ) from error
        raise ConfigError(
            "bad-keystore", f"{path} is not a Web3 keystore.", "Restore the file from your backup."
        ) from error
    except (KeyError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            "bad-keystore", f"{path} is not a Web3 keystore.", "Restore the file from your backup."
        ) from error
    return account


def address_of(path: Path) -> str:
    """Checksum address written in a keystore, without decrypting it. Raises like `load`."""
    from eth_utils.address import to_checksum_address

    try:
        return str(to_checksum_address("0x" + str(json.loads(path.read_text())["address"]).removeprefix("0x")))
    except FileNotFoundError as error:
        raise ConfigError(
            "no-keystore", f"There is no keystore {path}.", "Make one with `efedllm wallet new`."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "bad-keystore", f"{path} is not a Web3 keystore.", "Restore the file from your backup."
        ) from error


def read_password(password_file: Path | None, *, prompt: bool = True, confirm: bool = False) -> str:
    """Password from the file, else from EFEDLLM_PASSWORD, else asked on the terminal.

    Raises ConfigError "no-password" when none of these gives one.
    """
    if password_file is not None:
        try:
            return password_file.read_text().rstrip("\r\n")
        except OSError as error:
            raise ConfigError(
                "no-password", f"The password file {password_file} cannot be read.", "Check --password-file."
            ) from error
    if PASSWORD_VARIABLE in os.environ:
        return os.environ[PASSWORD_VARIABLE]
    if not prompt or not os.isatty(0):
        raise ConfigError(
            "no-password", "A keystore password is needed.", f"Pass --password-file or set {PASSWORD_VARIABLE}."
        )
    password = getpass("Keystore password: ")
    if confirm and password != getpass("Again: "):
        raise ConfigError("no-password", "The two passwords differ.", "Try again.")
    return password
