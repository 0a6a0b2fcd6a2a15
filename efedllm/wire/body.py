"""Reading and writing frame bodies: strict JSON objects and checked scalars."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from efedllm.commitments.eip712 import as_object
from efedllm.errors import ProtocolError
from efedllm.wire.frames import Frame, FrameType

MAX_CODE: Final = 64
MAX_TEXT: Final = 1000
"""Characters of an ERROR's message and of its hint."""


MAX_DEPTH: Final = 32
"""Nesting of JSON read from the network."""
# Possessive, and content without its closing quote, so that no input makes it look at a byte twice.
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("duplicate key")
    return out


def _depth(data: bytes) -> int:
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def parse_json(data: bytes) -> Any:
    """JSON from the network: UTF-8, no NaN, no repeated keys, at most MAX_DEPTH levels. ProtocolError("bad-json")
    otherwise.

    The depth is checked first: the interpreter's decoder recurses in C, and where a library has raised the recursion
    limit a few hundred kilobytes of brackets overflow the stack and kill the process.
    """
    try:
        if _depth(data) > MAX_DEPTH:
            raise ValueError("too deep")
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique)
    except ValueError:
        raise ProtocolError("bad-json", "The document is not valid JSON.") from None


def json_body(kind: FrameType, value: dict[str, Any], payload: bytes = b"") -> Frame:
    """A frame whose body is compact UTF-8 JSON."""
    return Frame(kind, json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(), payload)


def json_object(frame: Frame, kind: FrameType, keys: frozenset[str]) -> dict[str, Any]:
    """The JSON object of a `kind` frame with exactly `keys`; ProtocolError "bad-frame" or "bad-message"."""
    expect(frame, kind)
    if frame.payload and kind is not FrameType.OPEN_JOB:
        raise ProtocolError("bad-frame", f"A {kind.name} frame has no payload.")
    try:
        value = parse_json(frame.body)
    except ProtocolError:
        raise ProtocolError("bad-frame", f"The body of a {kind.name} frame is not valid JSON.") from None
    return as_object(value, keys, kind.name)


def expect(frame: Frame, kind: FrameType) -> None:
    """ProtocolError("bad-frame") unless `frame` is of `kind`."""
    if frame.type is not kind:
        raise ProtocolError("bad-frame", f"Expected a {kind.name} frame, got {frame.type.name}.")


def one_of(value: object, allowed: tuple[str, ...], name: str) -> str:
    """`value` if it is one of `allowed`, else ProtocolError("bad-message")."""
    if not isinstance(value, str) or value not in allowed:
        raise ProtocolError("bad-message", f"{name} must be one of {', '.join(allowed)}.")
    return value


def text(value: object, limit: int, name: str) -> str:
    """`value` if it is a well-formed string of at most `limit` characters, else ProtocolError("bad-message")."""
    if not isinstance(value, str) or len(value) > limit:
        raise ProtocolError("bad-message", f"{name} must be a text of at most {limit} characters.")
    # A lone surrogate survives JSON but cannot be printed or encoded again.
    if any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise ProtocolError("bad-message", f"{name} is not valid text.")
    return value


def signature_bytes(value: object, name: str = "signature") -> bytes:
    """`value` if it is 65 bytes, else ProtocolError("bad-message")."""
    if not isinstance(value, bytes) or len(value) != 65:
        raise ProtocolError("bad-message", f"{name} must be 65 bytes.")
    return value
