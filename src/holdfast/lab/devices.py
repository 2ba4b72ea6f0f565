"""Devices by the names that torch has for them."""

from __future__ import annotations

import torch

from holdfast.errors import OptionError


def usable_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        OptionError: it cannot be used.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            f"device {name!r} cannot be used: {str(error).splitlines()[0]}. Use cpu, or cuda where one is."
        ) from error
    return device
