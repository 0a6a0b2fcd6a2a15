"""Opening the compiled libraries of this folder, and no other than those built from the sources beside them.

They are called with bare addresses: a library of other sources would read arguments that mean something else. The build
(setup.py, which runs this file by its path) stamps each with a hash of all sources; where a package holds no sources,
the two were built together.
"""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path

SYMBOL = "efl_stamp"


def source_stamp(folder: Path) -> str:
    """First 16 hex digits of the sha256 over paths and bytes of the C files below `folder`; empty without any."""
    files = sorted((file.relative_to(folder).as_posix(), file) for file in folder.rglob("*.[ch]"))
    if not files:
        return ""
    digest = hashlib.sha256()
    for name, file in files:
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def open_library(path: Path) -> ctypes.CDLL:
    """Raises OSError when `path` cannot be loaded, or was built from other sources than those beside it."""
    handle = ctypes.CDLL(str(path))
    wanted = source_stamp(path.parent)
    if wanted and _stamp(handle) != wanted:
        raise OSError(f"{path.name} was built from other sources: run `pip install -e .` again")
    return handle


def _stamp(handle: ctypes.CDLL) -> str:
    try:
        function = getattr(handle, SYMBOL)
    except AttributeError:
        return ""
    function.restype = ctypes.c_char_p
    value: bytes = function()
    return value.decode()
