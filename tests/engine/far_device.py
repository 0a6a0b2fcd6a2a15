"""A device other than the CPU, for machines that have none: its tensors cannot be mixed with the CPU's.

It computes with the CPU what is asked of it, and is as strict and as different as CUDA is where the exact profile could
notice: integers have no matrix product but int8's, which takes more than 16 rows and multiples of 8; a division by a
number that the CPU holds is a product with its reciprocal; square roots are rounded as IEEE 754 says; numpy cannot read
its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FAR = "meta"
"""A name that torch knows and needs no driver for. Within `far_device` what lies there has values."""

aten = torch.ops.aten
_TRANSFERS = (aten.copy_.default, aten._to_copy.default)
_PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default)
_DIVISIONS = (aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar, aten.div_.Scalar)
_ROOTS = (aten.sqrt.default, aten.sqrt_.default)


class FarTensor(Tensor):
    """`near` holds the numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> FarTensor:
        made: FarTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=torch.device(FAR),
        )
        made.near = near
        return made

    def data_ptr(self) -> int:
        return self.near.data_ptr()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("cannot convert a far tensor to numpy: copy it to the CPU first")

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise RuntimeError("far tensors live within far_device")


class FarDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What a test may change of the device, and the operators that `used` it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used: set[str] = set()
        self.divides = True
        self.int8_product: Callable[[Tensor, Tensor], Tensor] = _int8_product
        self.product: Callable[..., Tensor] = lambda func, *parts: func(*parts)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        tensors = [t for t in tree_flatten((args, given))[0] if isinstance(t, Tensor)]
        far_ones = [t for t in tensors if isinstance(t, FarTensor)]
        arrives = str(given.get("device")) == FAR
        if not arrives and not far_ones:
            return func(*args, **given)
        self.used.add(str(func))
        if func not in _TRANSFERS and far_ones and any(t.ndim for t in tensors if not isinstance(t, FarTensor)):
            raise RuntimeError(f"{func}: tensors on two devices")
        by_number = func in _DIVISIONS and not isinstance(args[1], FarTensor)
        args, given = tree_map(lambda value: value.near if isinstance(value, FarTensor) else value, (args, given))
        leaves = given.get("device") is not None and not arrives
        if arrives:
            given["device"] = torch.device("cpu")
        if func in _DIVISIONS and (by_number or not self.divides):
            out = _times_reciprocal(func, *args)
        else:
            out = self._computed(func, args, given)
        known = {id(t.near): t for t in far_ones}
        if leaves or (func is aten.copy_.default and id(out) not in known):
            return out

        def far(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            # In-place operators give back what they were given.
            before = known.get(id(value))
            return FarTensor(value) if before is None else before

        return tree_map(far, out)

    def _computed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _PRODUCTS:
            if not args[-1].is_floating_point():
                raise RuntimeError(f"{func}: not implemented for integers")
            return self.product(func, *args)
        if func is aten._int_mm.default:
            left, right = args
            if left.shape[0] <= 16 or left.shape[1] % 8 or right.shape[1] % 8:
                raise RuntimeError(f"_int_mm: {tuple(left.shape)} by {tuple(right.shape)}")
            return self.int8_product(left, right)
        if func in _ROOTS:
            return torch.from_numpy(np.sqrt(args[0].numpy()))
        return func(*args, **kwargs)


def _int8_product(left: Tensor, right: Tensor) -> Tensor:
    return (left.long() @ right.long()).to(torch.int32)


def _times_reciprocal(func: Any, x: Tensor, number: Any) -> Any:
    times = aten.mul_.Tensor if func in (aten.div_.Tensor, aten.div_.Scalar) else aten.mul.Tensor
    return times(x, torch.tensor(1.0, dtype=x.dtype) / number)


@contextmanager
def far_device() -> Iterator[FarDevice]:
    """Within, tensors can be made on and moved to `FAR`."""
    # Tensors of an own class have no inference mode; without gradients the numbers are the same.
    with mock.patch.object(torch, "inference_mode", torch.no_grad), FarDevice() as device:
        yield device
