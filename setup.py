"""The C library of efedllm/kernels: built where there is a compiler, left out where there is none.

It is loaded with ctypes and uses nothing of Python's C API, so it has one plain name on every platform.
"""

from __future__ import annotations

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NAME = "efedllm.kernels.libproducts"


class BuildPlainLibrary(build_ext):
    """Names the library efedllm/kernels/libproducts.so, without the suffix of Python's own extensions."""

    def get_ext_filename(self, ext_name: str) -> str:
        if ext_name.endswith("libproducts"):
            return ext_name.replace(".", "/") + ".so"
        return super().get_ext_filename(ext_name)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        # There is no PyInit function to export.
        return list(ext.export_symbols)


setup(
    ext_modules=[
        Extension(
            NAME,
            sources=["efedllm/kernels/products.c"],
            depends=["efedllm/kernels/panels.h"],
            # Contraction would fuse steps of the exact arithmetic that are rounded one by one.
            extra_compile_args=["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", "-pthread"],
            extra_link_args=["-pthread"],
            # Without a compiler the installation succeeds and the engines compute with torch.
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildPlainLibrary},
)
