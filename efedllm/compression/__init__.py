"""Turning a transformers checkpoint into a published model: low-rank factors, int8, manifest. Needs torch."""

from efedllm.compression.compress import CompressOptions, CompressProgress, compress
from efedllm.compression.inspection import inspect

__all__ = ["CompressOptions", "CompressProgress", "compress", "inspect"]
