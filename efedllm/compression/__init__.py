"""Turning a transformers checkpoint into a published model: factors, few-bit integers, manifest. Needs torch."""

from efedllm.compression.compress import CompressProgress, compress
from efedllm.compression.evaluate import EvaluateOptions, evaluate
from efedllm.compression.inspection import inspect
from efedllm.compression.options import CompressOptions

__all__ = ["CompressOptions", "CompressProgress", "EvaluateOptions", "compress", "evaluate", "inspect"]
