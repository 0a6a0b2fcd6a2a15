"""Published linear maps of one input for the native kernels: one call for all of them, their factors and biases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efedllm.engine.exact.packed import PackedRows
from efedllm.engine.exact.products import check_columns, native_library
from efedllm.engine.exact.records import Int8Rows, Published
from efedllm.kernels.matrix import Scratch, TiledLinear, TiledLinears, TiledMatrix


def native_linears(published: Sequence[Published], scratch: Scratch | None) -> TiledLinears:
    """As many threads per call as torch has in this one."""
    shared: dict[int, TiledMatrix] = {}

    def tiled(rows: Int8Rows | PackedRows) -> TiledMatrix:
        values = rows.values if isinstance(rows, Int8Rows) else rows.data
        if values.data_ptr() not in shared:
            shared[values.data_ptr()] = _tiled(rows)
        return shared[values.data_ptr()]

    maps: list[TiledLinear] = []
    for p in published:
        base = None if p.base is None else tiled(p.base)
        v = u = None
        if p.factors is not None:
            v, u = tiled(p.factors.v), tiled(p.factors.u)
        maps.append(TiledLinear(base, v, u, p.bias))
    return TiledLinears(native_library(), maps, scratch=scratch, threads=torch.get_num_threads())


def _tiled(rows: Int8Rows | PackedRows) -> TiledMatrix:
    if isinstance(rows, Int8Rows):
        check_columns(rows.values.shape[1])
        return TiledMatrix(native_library(), rows.values, rows.values.shape[1], scale=rows.scales)
    check_columns(rows.columns)
    return TiledMatrix(
        native_library(),
        rows.data,
        rows.columns,
        bits=rows.bits,
        group=rows.group,
        mult=rows.multipliers,
        scale=rows.scales,
    )


def held(maps: TiledLinears) -> list[Tensor]:
    """Every tensor kept in memory."""
    return [t for m in maps.maps for t in m.held]
