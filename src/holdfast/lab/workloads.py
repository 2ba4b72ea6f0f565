"""From the name of a model to the model and a few batches of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import OptionError
from holdfast.lab.advise import Workload
from holdfast.lab.importing import imported
from holdfast.lab.methods import Setting
from holdfast.lab.packages import check_installed
from holdfast.lab.registry import own_settings
from holdfast.lab.streams import build_stream
from holdfast.lab.training import NETS, build_net
from holdfast.likelihoods.batches import batch_to
from holdfast.likelihoods.likelihood import resolve_likelihood
from holdfast.likelihoods.masks import active_classes


def workload_name(model: str, *, stream: str) -> str:
    """What the workload of these options is called, before it is built."""
    if model in NETS:
        return f"{model} on {stream}"
    return Path(model).name if Path(model).is_dir() else model


def workload(
    model: str,
    *,
    stream: str = "permuted-mnist",
    hidden: Sequence[int] = (300, 150),
    batch_size: int = 128,
    num_batches: int = 4,
    length: int = 128,
    device: str | torch.device = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    loss: str | None = None,
) -> Workload:
    """The workload that a text names.

    Args:
        model: "mlp", "convolution" or "attention", on a stream; "module:function", a function without arguments that
            returns (model, iterable of batches) or (model, batches, loss), looked for in the working folder too; or a
            folder of a transformers causal language model, which is given random tokens.
        stream: of a net by name.
        hidden: units of each hidden layer of an mlp.
        batch_size: examples a batch, but of "module:function", which has its own.
        num_batches: how many batches, the first ones.
        length: tokens of an example of a language model.
        device: as torch names it.
        data_dir: where MNIST is.
        loss: of "module:function", by its name, such as "gaussian" for regression; None: that which the function
            returns, else "categorical".

    Raises:
        OptionError: a loss for a model whose loss is known; the text names nothing, or what it names cannot be used.
    """
    if loss is not None and ":" not in model:
        raise OptionError(f"advise: --loss {loss} beside {model}, whose loss is that of its classes. Leave it out.")
    if model in NETS:
        return _net(model, stream, hidden, batch_size, num_batches, device, data_dir)
    if Path(model).is_dir():
        return _language_model(model, batch_size, num_batches, length, device)
    if ":" in model:
        return _of_function(model, num_batches, device, loss)
    raise OptionError(
        f"advise: {model!r} is no model; expected one of {', '.join(NETS)}, module:function that returns "
        "(model, batches), or the folder of a transformers model."
    )


def _net(
    name: Any,
    stream_name: str,
    hidden: Sequence[int],
    batch_size: int,
    num_batches: int,
    device: str | torch.device,
    data_dir: str | os.PathLike[str] | None,
) -> Workload:
    stream = build_stream(stream_name, data_dir=data_dir)
    net = build_net(
        name, stream.input_shape, stream.num_classes, **own_settings(NETS.named(name), {"hidden": tuple(hidden)})
    ).to(device)
    batches = stream[0].train.take(batch_size * num_batches).to(device).batches(batch_size)
    setting = Setting.of(stream)
    classes = active_classes(setting.mask, stream.task_classes, 0)
    return Workload(workload_name(name, stream=stream_name), net, list(batches), setting, classes)


def _of_function(text: str, num_batches: int, device: str | torch.device, loss: Any) -> Workload:
    found = imported(text, what="advise:")()
    if not (isinstance(found, tuple) and len(found) in (2, 3) and isinstance(found[0], nn.Module)):
        raise OptionError(
            f"advise: {text} returned a {type(found).__name__}; expected (model, iterable of batches), or a loss as "
            "the third."
        )
    loss = found[2] if loss is None and len(found) == 3 else loss
    resolve_likelihood(loss, where="advise")
    batches = [batch_to(batch, device) for batch in islice(found[1], num_batches)]
    if not batches:
        raise OptionError(f"advise: {text} returned no batches; expected (model, iterable of batches).")
    return Workload(text, found[0].to(device), batches, _one_head(batches), loss=loss)


def _one_head(batches: Sequence[Any]) -> Setting:
    """The setting of tasks that share their columns: the classes that the batches show."""
    inputs = batches[0][0] if isinstance(batches[0], tuple) else None
    shape = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()
    targets = [b[1] for b in batches if isinstance(b, tuple) and isinstance(b[1], Tensor) and b[1].dim() == 1]
    most = int(max((float(each.max()) for each in targets if not each.is_floating_point()), default=0.0))
    return Setting((tuple(range(most + 1)),) * 2, input_shape=shape)


def _language_model(
    folder: str, batch_size: int, num_batches: int, length: int, device: str | torch.device
) -> Workload:
    check_installed("transformers", what=f"advise: {folder} is a folder, which is read", extra="transformers")
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
    except (OSError, ValueError) as error:
        told = str(error).splitlines()[0]
        raise OptionError(f"advise: {folder} is no folder of a causal language model: {told}") from error
    model.to(device)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(num_batches):
        tokens = torch.randint(model.config.vocab_size, (batch_size, length), generator=generator).to(device)
        batches.append({"input_ids": tokens, "labels": tokens})
    return Workload(Path(folder).name, model, batches, Setting(((0,),) * 2))
