"""ABI encoding and decoding for one contract, and decoding of any contract's custom errors."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from eth_abi.abi import decode as abi_decode
from eth_abi.abi import encode as abi_encode
from eth_abi.exceptions import DecodingError, EncodingError
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from efedllm.errors import ChainError

Abi = list[dict[str, Any]]


def canonical_type(item: Mapping[str, Any]) -> str:
    """ABI type string with tuples spelled out: "(address,uint16[])[]"."""
    kind: str = item["type"]
    if not kind.startswith("tuple"):
        return kind
    inner = ",".join(canonical_type(part) for part in item["components"])
    return f"({inner}){kind.removeprefix('tuple')}"


def signature(item: Mapping[str, Any]) -> str:
    """`name(type,...)` of a function, event or error."""
    return f"{item['name']}({','.join(canonical_type(part) for part in item['inputs'])})"


def selector(item: Mapping[str, Any]) -> bytes:
    """First four bytes of the keccak of the signature."""
    return keccak(text=signature(item))[:4]


@cache
def _struct_type(name: str, fields: tuple[str, ...]) -> Any:
    return namedtuple(name, fields, rename=True)


def _array_item(item: Mapping[str, Any]) -> dict[str, Any]:
    return {**item, "type": item["type"].rpartition("[")[0]}


def to_abi(item: Mapping[str, Any], value: Any) -> Any:
    """Converts a Python value for eth_abi. Structs: dataclass, mapping or sequence. Bytes: bytes or hex text."""
    kind: str = item["type"]
    if kind.endswith("]"):
        inner = _array_item(item)
        return [to_abi(inner, element) for element in value]
    if kind == "tuple":
        names = [part["name"] for part in item["components"]]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            value = _struct_values(names, value)
        if not isinstance(value, Sequence) or len(value) != len(names):
            raise EncodingError(f"struct {item.get('internalType', 'tuple')} needs {', '.join(names)}")
        return tuple(to_abi(part, element) for part, element in zip(item["components"], value, strict=True))
    if kind.startswith("bytes") and isinstance(value, str):
        return bytes.fromhex(value.removeprefix("0x"))
    if kind.startswith(("uint", "int")) and not isinstance(value, bool) and hasattr(value, "__index__"):
        return value.__index__()
    return value


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _struct_values(names: Sequence[str], value: Mapping[str, Any]) -> list[Any]:
    """Values in the order of the Solidity fields; camelCase and snake_case names are the same."""
    by_name = {_plain(name): element for name, element in value.items()}
    return [by_name[_plain(name)] for name in names]


def from_abi(item: Mapping[str, Any], value: Any) -> Any:
    """Converts a value of eth_abi: checksum addresses, lists, structs as named tuples with the ABI's field names."""
    kind: str = item["type"]
    if kind.endswith("]"):
        inner = _array_item(item)
        return [from_abi(inner, element) for element in value]
    if kind == "tuple":
        parts = item["components"]
        name = str(item.get("internalType", "struct Struct")).split(".")[-1].split(" ")[-1].rstrip("[]0123456789")
        record = _struct_type(name or "Struct", tuple(part["name"] for part in parts))
        return record(*(from_abi(part, element) for part, element in zip(parts, value, strict=True)))
    return to_checksum_address(value) if kind == "address" else value


class Codec:
    """Calls, results and logs of one contract."""

    def __init__(self, name: str, abi: Abi) -> None:
        self.name = name
        self._functions: dict[str, list[dict[str, Any]]] = {}
        self._events: dict[bytes, dict[str, Any]] = {}
        self._topics: dict[str, bytes] = {}
        self._constructor: list[dict[str, Any]] = []
        for item in abi:
            if item["type"] == "function":
                self._functions.setdefault(item["name"], []).append(item)
            elif item["type"] == "event":
                topic = keccak(text=signature(item))
                self._events[topic] = item
                self._topics[item["name"]] = topic
            elif item["type"] == "constructor":
                self._constructor = item["inputs"]

    def function(self, name: str, count: int) -> dict[str, Any]:
        """The ABI entry of a function taking `count` arguments. ChainError "no-function" when there is none."""
        for item in self._functions.get(name, []):
            if len(item["inputs"]) == count:
                return item
        raise ChainError(
            "no-function",
            f"{self.name} has no function {name} with {count} arguments.",
            "The contracts and this program are of different versions: upgrade, or deploy again.",
        )

    def encode_call(self, name: str, args: Sequence[Any]) -> bytes:
        """Calldata. Raises ChainError "bad-argument" when a value does not fit its type."""
        item = self.function(name, len(args))
        return selector(item) + self._encode(f"{self.name}.{name}", item["inputs"], args)

    def encode_constructor(self, args: Sequence[Any]) -> bytes:
        """Constructor arguments, to be appended to the creation code."""
        if len(args) != len(self._constructor):
            raise ChainError(
                "bad-argument", f"{self.name} takes {len(self._constructor)} constructor arguments, not {len(args)}."
            )
        return self._encode(f"{self.name} constructor", self._constructor, args)

    @staticmethod
    def _encode(what: str, inputs: Sequence[Mapping[str, Any]], args: Sequence[Any]) -> bytes:
        types = [canonical_type(part) for part in inputs]
        try:
            return bytes(abi_encode(types, [to_abi(part, arg) for part, arg in zip(inputs, args, strict=True)]))
        except (EncodingError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ChainError("bad-argument", f"An argument of {what} does not fit ({error}).") from error

    def decode_result(self, name: str, count: int, data: bytes) -> Any:
        """One value for a function with one output, a list of values for several, None for none."""
        outputs = self.function(name, count)["outputs"]
        try:
            values = abi_decode([canonical_type(part) for part in outputs], data)
        except DecodingError as error:
            raise ChainError(
                "bad-result",
                f"{self.name}.{name} answered {len(data)} bytes that do not decode.",
                "The deployment file does not match the chain: check --deployment and --rpc.",
            ) from error
        decoded = [from_abi(part, value) for part, value in zip(outputs, values, strict=True)]
        if len(decoded) == 1:
            return decoded[0]
        return decoded or None

    def topic(self, event: str) -> bytes:
        """topic0 of an event. ChainError "no-event" when the contract has none of that name."""
        try:
            return self._topics[event]
        except KeyError as error:
            raise ChainError("no-event", f"{self.name} has no event {event}.") from error

    def decode_log(self, topics: Sequence[bytes], data: bytes) -> tuple[str, dict[str, Any]] | None:
        """(event name, arguments), or None for a log this contract does not declare."""
        item = self._events.get(topics[0]) if topics else None
        if item is None:
            return None
        indexed = [part for part in item["inputs"] if part["indexed"]]
        plain = [part for part in item["inputs"] if not part["indexed"]]
        args: dict[str, Any] = {}
        for part, topic in zip(indexed, topics[1:], strict=True):
            dynamic = part["type"] in ("string", "bytes") or part["type"].endswith("]") or part["type"] == "tuple"
            args[part["name"]] = topic if dynamic else from_abi(part, abi_decode([part["type"]], topic)[0])
        values = abi_decode([canonical_type(part) for part in plain], data)
        args.update((part["name"], from_abi(part, value)) for part, value in zip(plain, values, strict=True))
        return item["name"], {part["name"]: args[part["name"]] for part in item["inputs"]}
