"""Linear modules as published: dense, two factors that are never multiplied out, or an integer base with factors."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear


class DenseLinear(nn.Module):
    """y = W x + b. weight float32 [out, in]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight)
        self.bias = None if bias is None else nn.Buffer(bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class LowRankLinear(nn.Module):
    """y = U (V x) + b with u float32 [out, rank], v [rank, in].

    rank * (out + in) multiplications per token instead of out * in.
    """

    def __init__(self, u: Tensor, v: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.u = nn.Buffer(u)
        self.v = nn.Buffer(v)
        self.bias = None if bias is None else nn.Buffer(bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(linear(x, self.v), self.u, self.bias)


class PackedLinear(nn.Module):
    """y = B x + U (V x) + b with the base B float32 [out, in], u float32 [out, rank], v [rank, in] with its scales.

    The published base has 2 to 6 bits per weight; in the float profile it is unpacked to float32 when loaded, so that
    it takes the memory of a dense matrix there. The factors stay factors.
    """

    def __init__(self, base: Tensor, u: Tensor, v: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.base = nn.Buffer(base)
        self.u = nn.Buffer(u)
        self.v = nn.Buffer(v)
        self.bias = None if bias is None else nn.Buffer(bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.base, self.bias) + linear(linear(x, self.v), self.u)
