"""The contract reference: functions, events, errors and structs of the interfaces, from what solc reads of NatSpec."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import solcx

from efedllm_deploy.compile import ROOT, SETTINGS, collect_sources, find_compiler

INTERFACES = ROOT / "contracts" / "interfaces"

HEAD = """# Contracts

This page is generated from the comments in `contracts/interfaces/`. `make docs` writes it again.

Amounts are wei of EFED unless the text says otherwise. [The protocol](../protocol.md) says how the contracts
are used, `deployments/<chainId>.json` where they are.
"""
KINDS = {"function": "Functions", "event": "Events", "error": "Errors"}
_TAG = re.compile(r"@(notice|dev|param|return|title)\b")


def read() -> dict[str, Any]:
    """What solc says of every interface file: its output for `abi`, `userdoc`, `devdoc` and the syntax tree."""
    names = [f"contracts/interfaces/{path.name}" for path in sorted(INTERFACES.glob("*.sol"))]
    selection = {name: {"*": ["abi", "userdoc", "devdoc"], "": ["ast"]} for name in names}
    request = {
        "language": "Solidity",
        "sources": collect_sources(names),
        "settings": {**SETTINGS, "outputSelection": selection},
    }
    output: dict[str, Any] = solcx.compile_standard(request, solc_binary=find_compiler().binary)
    return {name: {"contracts": output["contracts"][name], "ast": output["sources"][name]["ast"]} for name in names}


def render(files: dict[str, Any] | None = None) -> str:
    """The page as Markdown. Each file has one interface that unites the others of the file."""
    files = read() if files is None else files
    interfaces = {_united(name): files[name] for name in files}
    index = ["| interface | is |", "|---|---|"]
    sections = []
    for name, file in interfaces.items():
        compiled = file["contracts"][name]
        notice = str(compiled["userdoc"].get("notice", ""))
        index.append(f"| [{name}](#{name.lower()}) | {notice} |")
        sections.append("\n".join(_interface(name, compiled, file["ast"])))
    return "\n".join([HEAD, *index, "", *sections])


def _united(file: str) -> str:
    return file.rpartition("/")[2].removesuffix(".sol")


def _interface(name: str, compiled: dict[str, Any], tree: dict[str, Any]) -> Iterator[str]:
    user, dev = compiled["userdoc"], compiled["devdoc"]
    yield from (f"## {name}", "", str(user.get("notice", "")), "")
    if "details" in dev:
        yield from (str(dev["details"]), "")
    for kind, title in KINDS.items():
        entries = [entry for entry in compiled["abi"] if entry["type"] == kind]
        described = [entry for entry in entries if _notice(user, entry)]
        if described:
            yield from (f"### {title} of {name}", "")
            for entry in described:
                yield from _entry(entry, compiled)
            yield ""
    structs = [node for node in _nodes(tree) if node.get("nodeType") == "StructDefinition"]
    if structs:
        yield from (f"### Structs of {name}", "")
        for struct in structs:
            yield from _struct(struct)
        yield ""


def _entry(entry: dict[str, Any], compiled: dict[str, Any]) -> Iterator[str]:
    inputs = ", ".join(_declared(item) for item in entry["inputs"])
    head = f"{entry['name']}({inputs})"
    outputs = [_declared(item) for item in entry.get("outputs", [])]
    if outputs:
        head += f" returns ({', '.join(outputs)})"
    notice, described = documentation(compiled, entry)
    yield f"- `{head}`: {notice}"
    note = _documented(compiled["devdoc"], entry).get("details")
    if note:
        yield f"    - Note: {note}"
    for item in entry["inputs"] + entry.get("outputs", []):
        if item["name"] in described:
            yield f"    - `{item['name']}`: {described[item['name']]}"


def _struct(struct: dict[str, Any]) -> Iterator[str]:
    notice, members = _natspec(struct.get("documentation", {}).get("text", ""))
    yield f"- `{struct['name']}`: {notice}"
    for member in struct["members"]:
        text = members.get(member["name"], "")
        kind = member["typeDescriptions"]["typeString"]
        yield f"    - `{kind} {member['name']}`" + (f": {text}" if text else "")


def documentation(compiled: dict[str, Any], entry: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The notice of an ABI entry, and what its comment says of each of its parameters and results, by name."""
    details = _documented(compiled["devdoc"], entry)
    return _notice(compiled["userdoc"], entry), {**details.get("params", {}), **details.get("returns", {})}


def _notice(user: dict[str, Any], entry: dict[str, Any]) -> str:
    return str(_documented(user, entry).get("notice", ""))


def _documented(doc: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """What `userdoc` or `devdoc` holds of an ABI entry; empty where it holds nothing."""
    group = {"function": "methods", "event": "events", "error": "errors"}[entry["type"]]
    found = doc.get(group, {}).get(_signature(entry), {})
    # Errors of one signature may come from several files, so solc lists them.
    return dict(found[0] if isinstance(found, list) else found)


def _signature(entry: dict[str, Any]) -> str:
    return f"{entry['name']}({','.join(_canonical(item) for item in entry['inputs'])})"


def _canonical(item: dict[str, Any]) -> str:
    """The type as it stands in a signature: a struct is the tuple of its members."""
    kind: str = item["type"]
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(_canonical(member) for member in item['components'])}){kind.removeprefix('tuple')}"


def _declared(item: dict[str, Any]) -> str:
    """A parameter as a reader of Solidity writes it: `uint64 indexed epoch`, `Terms next`."""
    kind = str(item.get("internalType", item["type"]))
    kind = kind.removeprefix("struct ").removeprefix("contract ").rpartition(".")[2]
    return " ".join(word for word in (kind, "indexed" if item.get("indexed") else "", item["name"]) if word)


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for item in tree:
            yield from _nodes(item)


def _natspec(text: str) -> tuple[str, dict[str, str]]:
    """The notice and the members of a comment above a struct, for which solc writes no documentation."""
    parts = _TAG.split(" ".join(text.split()))
    notice, members = "", {}
    for tag, content in zip(parts[1::2], parts[2::2], strict=True):
        if tag == "notice":
            notice = content.strip()
        elif tag == "param":
            name, _, meaning = content.strip().partition(" ")
            members[name] = meaning
    return notice, members
