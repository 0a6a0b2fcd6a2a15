"""The C libraries of efedllm/kernels: built where there is a compiler, left out where there is none.

They are loaded with ctypes and use nothing of Python's C API, so they have one plain name on every platform.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGE = "efedllm.kernels"
KERNELS = Path("efedllm") / "kernels"
# By its path: importing the package would need what this script has yet to install.
STAMP: str = runpy.run_path(str(KERNELS / "stamp.py"))["source_stamp"](KERNELS)


class BuildPlainLibrary(build_ext):
    """Names the libraries efedllm/kernels/lib*.so, without the suffix of Python's own extensions."""

    def get_ext_filename(self, ext_name: str) -> str:
        if ext_name.rpartition(".")[2].startswith("lib"):
            return ext_name.replace(".", "/") + ".so"
        return super().get_ext_filename(ext_name)

    def copy_file(self, infile: str, outfile: str, *args: object, **kwargs: object) -> tuple[str, bool]:
        """Replaces `outfile` in one step: a process that starts meanwhile must not load half a library."""
        beside = f"{outfile}.{os.getpid()}.tmp"
        done = super().copy_file(infile, beside, *args, **kwargs)[1]
        if done:
            Path(beside).replace(outfile)
        return outfile, done

    def get_export_symbols(self, ext: Extension) -> list[str]:
        # There is no PyInit function to export.
        return list(ext.export_symbols)


def library(name: str, *sources: str) -> Extension:
    return Extension(
        f"{PACKAGE}.{name}",
        sources=[(KERNELS / source).as_posix() for source in (*sources, "stamp.c")],
        # All of them: the stamp of each library is over all sources.
        depends=sorted(file.as_posix() for file in KERNELS.rglob("*.[ch]")),
        define_macros=[("EFL_STAMP", f'"{STAMP}"')],
        # Contraction would fuse steps of the exact arithmetic that are rounded one by one.
        extra_compile_args=["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", "-pthread"],
        extra_link_args=["-pthread", "-lm"],
        # Without a compiler the installation succeeds and the engines compute with torch.
        optional=True,
    )


setup(
    ext_modules=[
        library(
            "libproducts",
            *(f"products/{name}.c" for name in ("products", "tiles", "peak", "plain", "avx2", "vnni", "neon")),
        ),
        library("libsteps", "steps.c"),
        library("libkeccak", "keccak.c"),
    ],
    cmdclass={"build_ext": BuildPlainLibrary},
)
