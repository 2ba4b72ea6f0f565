"""In what form importances and anchors are held, and where.

    importance   bytes a weight   error of an entry v, the largest of whose 256 neighbours is V
    float32      4                none
    bfloat16     2                v/256
    int8         1.004            v/16; below V/2^30, where it is held as about that, at most V/2^30

Kronecker factors, bases and spectra, are held in float32 or, for the other two, in bfloat16.

    anchor
    float32      as the weights   none: the weights' own dtype
    bfloat16     2                v/256
    int16        2.004            V/32768, in most networks a hundredth of bfloat16's
    reference    0                none: in a checkpoint on disk (`holdfast.memory.reference`)

In every form zero is held as zero, and no importance above zero becomes zero. Where a later task is added to an
importance the sum is rounded up or down at random, right on average, by at most twice the error above: rounded to the
nearest, a sum would stand still under additions smaller than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from holdfast.choices import check_choices
from holdfast.curvature import Curvature
from holdfast.curvature.sharing import held_in
from holdfast.memory import codes
from holdfast.memory.stored import PIECE, AnyTensor, Blocks, pieces, read

ImportanceForm = Literal["float32", "bfloat16", "int8"]
AnchorForm = Literal["float32", "bfloat16", "int16"]


@dataclass(frozen=True)
class Forms:
    """What a keeper was asked for.

    Attributes:
        importance: "float32", "bfloat16" or "int8".
        anchors: "float32" (the weights' own dtype), "bfloat16" or "int16".
        offload: whether both stay in the host's memory, pinned where there is CUDA.
    """

    importance: ImportanceForm = "float32"
    anchors: AnchorForm = "float32"
    offload: bool = False

    def __post_init__(self) -> None:
        check_choices(self)

    def new_importance(self, shape: torch.Size, device: torch.device) -> AnyTensor:
        """Of the form of importances, contiguous, to be written to."""
        if self.importance == "int8":
            return Blocks.zeros(shape, dtype=torch.uint8, device=device)
        dtype = torch.bfloat16 if self.importance == "bfloat16" else torch.float32
        return torch.empty(shape, dtype=dtype, device=device)

    def new_anchor(self, weight: Tensor) -> AnyTensor:
        """Of the form of this weight's anchor, contiguous, to be written to."""
        if self.anchors == "int16":
            return Blocks.zeros(weight.shape, dtype=torch.int16, device=weight.device)
        dtype = torch.bfloat16 if self.anchors == "bfloat16" else weight.dtype
        return torch.empty(weight.shape, dtype=dtype, device=weight.device)

    def placed(self, held: AnyTensor, device: torch.device | None = None) -> AnyTensor:
        """Where it is to be kept: in the host's memory, or on `device` (None: where it is)."""
        if self.offload:
            return _pinned(held.to(torch.device("cpu")))
        return held if device is None else held.to(device)

    def importance_as(self, held: AnyTensor) -> AnyTensor:
        """The same importance in this form; itself if it is."""
        out = self.new_importance(held.shape, held.device)
        return held if _form(held) == _form(out) else _copied(held, out, write_importance)

    def layer_as(self, layer: Curvature, noise: torch.Generator | None = None) -> Curvature:
        """The same curvature of a layer in this form, where it has Kronecker factors; itself if it is."""
        narrow = self.importance != "float32"
        return held_in(layer, partial(codes.to_bfloat16, noise=noise) if narrow else None)

    def anchor_as(self, held: AnyTensor, weight: Tensor) -> AnyTensor:
        """The same anchor of this weight in this form; itself if it is, and a tensor where tensors are asked for."""
        out = self.new_anchor(weight)
        same = _form(held) == _form(out) or (self.anchors == "float32" and isinstance(held, Tensor))
        return held if same else _copied(held, out, write_anchor)


def write_importance(held: AnyTensor, values: Tensor, noise: torch.Generator | None = None) -> None:
    """Take up the importances of a flat piece, float32 and >= 0; `noise` as for `codes.encode_importance`."""
    match held:
        case Blocks():
            _fill(held, codes.encode_importance(values, noise))
        case Tensor(dtype=torch.bfloat16):
            held.copy_(codes.to_bfloat16(values, noise))
        case Tensor():
            held.copy_(values)
        case _:
            raise AssertionError(f"{type(held).__name__} cannot be written to")


def write_anchor(held: AnyTensor, values: Tensor) -> None:
    """Take up the weights of a flat piece."""
    if isinstance(held, Blocks):
        _fill(held, codes.encode_anchor(values.float()))
    else:
        assert isinstance(held, Tensor)
        held.copy_(values)


def _fill(blocks: Blocks, encoded: tuple[Tensor, Tensor]) -> None:
    blocks.codes.copy_(encoded[0])
    blocks.exponents.copy_(encoded[1])


def _form(held: AnyTensor) -> tuple[type, torch.dtype | None]:
    values = held.codes if isinstance(held, Blocks) else held
    return type(held), values.dtype if isinstance(values, Tensor) else None


def _copied(held: AnyTensor, out: AnyTensor, write: Callable[[AnyTensor, Tensor], None]) -> AnyTensor:
    for source, target in zip(pieces(held, PIECE), pieces(out, PIECE), strict=True):
        write(target, read(source, dtype=torch.float32, device=out.device))
    return out


def _pinned(held: AnyTensor) -> AnyTensor:
    if not torch.cuda.is_available():
        return held
    if isinstance(held, Blocks):
        return Blocks(held.codes.pin_memory(), held.exponents.pin_memory())
    return held.pin_memory() if isinstance(held, Tensor) else held
