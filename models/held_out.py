"""Make `pylib-7m/held-out-2.txt` again: docstrings of NetworkX, prose about graphs instead of the library's own code.

Files in the order of the hash of their path, docstrings in the order of the source, until the text is long enough.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.metadata
import importlib.util
from inspect import cleandoc
from pathlib import Path

PACKAGE, VERSION = "networkx", "3.6.1"
SIZE = 100_000


def docstrings(source: str) -> list[str]:
    """Of modules, classes and functions, in the order of the source; short ones say nothing."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    found = [cleandoc(text) for node in nodes if (text := ast.get_docstring(node, clean=False))]
    return [text for text in found if len(text) >= 200]


def make() -> str:
    """Raises RuntimeError when another version of the package is installed."""
    installed = importlib.metadata.version(PACKAGE)
    if installed != VERSION:
        raise RuntimeError(f"{PACKAGE} {VERSION} is needed; {installed} is installed")
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    paths = [path.relative_to(root).as_posix() for path in root.rglob("*.py") if "tests" not in path.parts]
    texts: list[str] = []
    size = 0
    for path in sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest()):
        for text in docstrings((root / path).read_text("utf-8")):
            if size >= SIZE:
                return "\n\n".join(texts) + "\n"
            texts.append(text)
            size += len(text.encode()) + 2
    return "\n\n".join(texts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pylib-7m" / "held-out-2.txt")
    parser.parse_args().out.write_text(make(), "utf-8")


if __name__ == "__main__":
    main()
