"""What a wheel holds beside the Python packages: the C libraries of efedllm/kernels and the bundled model.

The libraries are built where there is a compiler and left out where there is none. They are loaded with ctypes and use
nothing of Python's C API: one wheel serves every Python 3 of a platform.
"""

from __future__ import annotations

import os
import runpy
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

PACKAGE = "efedllm.kernels"
KERNELS = Path("efedllm") / "kernels"
# By its path: importing the package would need what this script has yet to install.
STAMP: str = runpy.run_path(str(KERNELS / "stamp.py"))["source_stamp"](KERNELS)

BUNDLED = Path("models") / "pylib-7m"
# Where efedllm_deploy.bundled looks in an installed package.
BUNDLED_IN_WHEEL = Path("efedllm_deploy") / "pylib-7m"


class BuildPlainLibrary(build_ext):
    """Names the libraries efedllm/kernels/lib*.so, without the suffix of Python's own extensions."""

    def run(self) -> None:
        super().run()
        missing = [ext.name for ext in self.extensions if not Path(self.get_ext_fullpath(ext.name)).exists()]
        if missing:
            self.warn(
                f"without a C compiler {', '.join(missing)} were not built. Everything works, but a node or verifier "
                "of this installation computes with torch and numpy and will be slower. Install a compiler and "
                "build again to change that."
            )

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


class BuildWithModel(build_py):
    """Copies the bundled model into the package that serves it. An editable installation reads the checkout's."""

    def run(self) -> None:
        super().run()
        for source, target in self._model_files():
            self.mkpath(str(target.parent))
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *(str(target) for _, target in self._model_files())]

    def _model_files(self) -> list[tuple[Path, Path]]:
        if self.editable_mode or not BUNDLED.is_dir():
            return []
        folder = Path(self.build_lib) / BUNDLED_IN_WHEEL
        return [(file, folder / file.name) for file in sorted(BUNDLED.iterdir()) if file.is_file()]


class PlatformWheel(bdist_wheel):
    """Tags the wheel py3-none-PLATFORM, for libraries that depend on no version of Python; "any" without libraries."""

    def get_tag(self) -> tuple[str, str, str]:
        build = self.get_finalized_command("build_ext")
        native = any(Path(build.get_ext_fullpath(ext.name)).exists() for ext in build.extensions)
        return "py3", "none", super().get_tag()[2] if native else "any"


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
    cmdclass={"build_ext": BuildPlainLibrary, "build_py": BuildWithModel, "bdist_wheel": PlatformWheel},
)
