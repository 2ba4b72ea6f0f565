"""Pictures seen otherwise each time, so that a network does not learn them by heart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, assert_never, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.choices import check_choice
from holdfast.errors import OptionError

Augmentation = Literal["crop", "flip"]

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""From pictures [B, C, H, W] and a source of chance to as many."""

_MARGIN = 8
"""A picture moves by up to its side over this."""


def known_augmentations(names: str | Sequence[str]) -> tuple[Augmentation, ...]:
    """One or several of them.

    Raises:
        UnknownNameError: there is no such one.
    """
    found = (names,) if isinstance(names, str) else tuple(names)
    for name in found:
        check_choice("augment", name, get_args(Augmentation))
    return cast(tuple[Augmentation, ...], found)


def augmented(names: Sequence[Augmentation], input_shape: Sequence[int]) -> Augment | None:
    """What is done with each batch; None where nothing is.

    Args:
        names: in order.
        input_shape: of one example.

    Raises:
        UnknownNameError: there is no such one.
        OptionError: the inputs are no pictures.

    Source: He et al. 2016 (arXiv 1512.03385), section 4.2: 4 zeros around 32 x 32 pixels, then a crop.
    """
    asked = known_augmentations(names)
    if not asked:
        return None
    if len(input_shape) != 3:
        raise OptionError(f"augment: inputs of shape {list(input_shape)}; expected pictures [C, H, W]. Leave it out.")

    def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
        for name in asked:
            match name:
                case "crop":
                    pictures = _cropped(pictures, generator)
                case "flip":
                    pictures = _flipped(pictures, generator)
                case _:
                    assert_never(name)
        return pictures

    return augment


def _cropped(pictures: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = pictures.shape
    margin = max(1, max(height, width) // _MARGIN)
    starts = torch.randint(2 * margin + 1, (2, count, 1), generator=generator).to(pictures.device)
    rows = starts[0] + torch.arange(height, device=pictures.device)
    columns = starts[1] + torch.arange(width, device=pictures.device)
    padded = F.pad(pictures, [margin] * 4).movedim(1, 3)
    batch = torch.arange(count, device=pictures.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].movedim(3, 1).contiguous()


def _flipped(pictures: Tensor, generator: torch.Generator) -> Tensor:
    turned = torch.randint(2, (len(pictures), 1, 1, 1), generator=generator).to(pictures.device)
    return torch.where(turned.bool(), pictures.flip(-1), pictures)
