"""Private keys encrypted by a password: Web3 Secret Storage version 3, the format of geth and MetaMask."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Mapping
from typing import Any

from Crypto.Cipher import AES

from efedllm.commitments.hashing import keccak
from efedllm.commitments.signing import Signer

_DERIVED_BYTES = 32
_SCRYPT = {"r": 8, "p": 1}
# The cost of a file is bounded, so that a strange one cannot take all memory: 2^20 is four times the usual one.
_MOST_SCRYPT_BYTES = 128 * 8 * 2**20


class WrongPasswordError(ValueError):
    """The password is not the one the file was written with."""


def scrypt(cost: int) -> dict[str, Any]:
    """How to stretch a password that a person chose: scrypt with n = `cost`, a power of two."""
    return {"kdf": "scrypt", "kdfparams": {"n": cost, **_SCRYPT}}


def pbkdf2(iterations: int) -> dict[str, Any]:
    """How to stretch a password by HMAC-SHA256."""
    return {"kdf": "pbkdf2", "kdfparams": {"c": iterations, "prf": "hmac-sha256"}}


def encrypt(private_key: bytes, password: bytes, stretching: Mapping[str, Any]) -> dict[str, Any]:
    """The document for a key of 32 bytes; `stretching` is made by `scrypt` or `pbkdf2`."""
    params = {**stretching["kdfparams"], "dklen": _DERIVED_BYTES, "salt": secrets.token_hex(16)}
    derived = _derive(password, stretching["kdf"], params)
    vector = secrets.token_bytes(16)
    ciphertext = _aes_ctr(derived, vector, private_key)
    return {
        "address": Signer(private_key).address[2:].lower(),
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": vector.hex()},
            "ciphertext": ciphertext.hex(),
            "kdf": stretching["kdf"],
            "kdfparams": params,
            "mac": _mac(derived, ciphertext).hex(),
        },
        "id": str(uuid.uuid4()),
        "version": 3,
    }


def decrypt(document: Any, password: bytes) -> bytes:
    """The private key, 32 bytes.

    Raises WrongPasswordError, and ValueError, KeyError or TypeError when `document` is no such file.
    """
    if int(document["version"]) != 3:
        raise ValueError(f"version {document['version']} is not 3")
    # Some programs write this name in capitals.
    crypto = document["crypto"] if "crypto" in document else document["Crypto"]
    if crypto["cipher"] != "aes-128-ctr":
        raise ValueError(f"cipher {crypto['cipher']} is not known")
    derived = _derive(password, crypto["kdf"], crypto["kdfparams"])
    ciphertext = bytes.fromhex(crypto["ciphertext"])
    if not hmac.compare_digest(_mac(derived, ciphertext), bytes.fromhex(crypto["mac"])):
        raise WrongPasswordError("the password does not fit")
    return _aes_ctr(derived, bytes.fromhex(crypto["cipherparams"]["iv"]), ciphertext)


def _derive(password: bytes, kdf: str, params: Mapping[str, Any]) -> bytes:
    salt, length = bytes.fromhex(params["salt"]), int(params["dklen"])
    if length < _DERIVED_BYTES:
        raise ValueError(f"a derived key of {length} bytes is too short")
    if kdf == "scrypt":
        n, r, p = (int(params[name]) for name in ("n", "r", "p"))
        if 128 * n * r > _MOST_SCRYPT_BYTES:
            raise ValueError(f"scrypt with n={n}, r={r} takes too much memory")
        # OpenSSL counts the working memory beside the table.
        memory = 128 * r * (n + p + 2)
        return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=memory, dklen=length)
    if kdf == "pbkdf2" and params["prf"] == "hmac-sha256":
        return hashlib.pbkdf2_hmac("sha256", password, salt, int(params["c"]), length)
    raise ValueError(f"key derivation {kdf} is not known")


def _mac(derived: bytes, ciphertext: bytes) -> bytes:
    return keccak(derived[16:32] + ciphertext)


def _aes_ctr(derived: bytes, vector: bytes, data: bytes) -> bytes:
    """Both directions of AES-128 in counter mode; `vector` is the first counter."""
    return AES.new(derived[:16], AES.MODE_CTR, nonce=b"", initial_value=vector).encrypt(data)
