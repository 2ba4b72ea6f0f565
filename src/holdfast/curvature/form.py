"""A layer's weight and bias as one matrix [out, in (+1)], however the weight lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import FileFormatError


@dataclass(frozen=True, kw_only=True)
class LayerForm:
    """How a layer's weight, and its bias as the last column, make a matrix [out, in (+1)].

    Attributes:
        shape: of the weight: [out, in], [out, channels, *kernel], or [in, out].
        bias: name of the bias parameter, or None.
        inputs_first: whether the weight is [in, out], as that of a transformers `Conv1D`.
        reads: the same for all layers that read the same input, the weight of the first of them; None for an input that
            no other layer reads.
    """

    shape: tuple[int, ...]
    bias: str | None = None
    inputs_first: bool = False
    reads: str | None = None

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """[out, in (+1)]: of the matrix."""
        out, *inputs = reversed(self.shape) if self.inputs_first else self.shape
        return out, math.prod(inputs) + (self.bias is not None)

    def names(self, weight: str) -> list[str]:
        """Of the parameters, the weight's being known."""
        return [weight] if self.bias is None else [weight, self.bias]

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the parameters, the weight's name being known."""
        return dict(zip(self.names(name), (self.shape, self.matrix_shape[:1])))

    def join(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The matrix of a weight and, where there is one, a bias; a copy."""
        flat = weight.T if self.inputs_first else weight.reshape(len(weight), -1)
        return flat.clone() if bias is None else torch.cat([flat, bias.unsqueeze(1)], dim=1)

    def split(self, matrix: Tensor) -> list[Tensor]:
        """The weight, and the bias where there is one, inside a matrix; views."""
        flat = matrix if self.bias is None else matrix[:, :-1]
        weight = flat.T if self.inputs_first else flat.reshape(self.shape)
        return [weight] if self.bias is None else [weight, matrix[:, -1]]

    @property
    def form(self) -> dict[str, Any]:
        """The attributes, to be given as keywords or written as JSON."""
        reads = {} if self.reads is None else {"reads": self.reads}
        return {"shape": self.shape, "bias": self.bias, "inputs_first": self.inputs_first, **reads}


def read_form(described: Any, *, name: str, where: str) -> dict[str, Any]:
    """What `LayerForm.form` gave, from a file.

    Raises:
        FileFormatError: it is damaged.
    """
    found = described if isinstance(described, dict) else {}
    shape, bias, inputs_first = found.get("shape"), found.get("bias"), found.get("inputs_first", False)
    reads = found.get("reads")
    sizes = shape if isinstance(shape, list | tuple) else []
    whole = len(sizes) >= 2 and all(isinstance(n, int) and n > 0 for n in sizes)
    laid_out = isinstance(inputs_first, bool) and (len(sizes) == 2 or not inputs_first)
    if not (whole and laid_out and isinstance(bias, str | None) and isinstance(reads, str | None)):
        raise FileFormatError(f"{where}: 'shape' or 'bias' of {name!r} is damaged ({described!r}). Save it again.")
    return {"shape": tuple(sizes), "bias": bias, "inputs_first": inputs_first, "reads": reads}
