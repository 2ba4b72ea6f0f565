"""What of a causal language model decides the memory it takes, from its configuration: no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.curvature.blocks import block_width
from holdfast.errors import OptionError
from holdfast.language.folders import config_of
from holdfast.language.live_bytes import FlashAttention, pass_bytes
from holdfast.language.models import find_model, transformers_library
from holdfast.language.skills import likelihood_of
from holdfast.moments.matrices import layers_of

LLAMAS: Mapping[str, Mapping[str, Any]] = {
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "llama-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}
"""Configurations that have a name here: those of Llama 3."""

_LLAMA = {"model_type": "llama", "vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 8192}


@dataclass(frozen=True)
class Activations:
    """What a forward and a backward pass take beside weights and gradients, for examples of one length.

    Attributes:
        least: bytes of one example; with few tokens the gradients of the embeddings, on their way.
        each: bytes of an example among many.
    """

    least: int
    each: float

    def of(self, num_examples: int) -> int:
        """Bytes of so many at once."""
        return max(self.least, round(num_examples * self.each))


@dataclass(frozen=True)
class Sizes:
    """What of a model decides memory.

    Attributes:
        num_weights: all are trained.
        largest: weights of the largest parameter.
        is_tied: whether the embedding is the output layer too.
        block: weights of the largest of its blocks, each a group of its own under `fully_shard`.
        rest: weights outside the blocks: embedding, output layer, last norm.
        sides: outputs and inputs of every layer that can have Kronecker factors; blocks and all.
        vocabulary: outputs of a token.
        activations: of a pass that keeps them, by number format.
        checkpointed: of one that computes them again block by block, likewise.
    """

    num_weights: int
    largest: int
    is_tied: bool
    block: int
    rest: int
    sides: tuple[tuple[int, int], ...]
    vocabulary: int
    activations: Mapping[str, Activations]
    checkpointed: Mapping[str, Activations]

    def factors(self, *, max_size: int | None = None, block_size: int | None = None) -> int:
        """Numbers in A and G of all layers, n^2 + m^2 each; sides above `max_size` in blocks (`holdfast.kfac`)."""
        return sum(side * block_width(side, max_size, block_size) for both in self.sides for side in both)

    @property
    def in_layers(self) -> int:
        """Weights of the layers that can have factors."""
        return sum(out * width for out, width in self.sides)


def configuration(name: str) -> Any:
    """The configuration of transformers of a model.

    Args:
        name: of `LLAMAS`, or as for `find_model`; a folder with config.json alone will do.

    Raises:
        OptionError: there is none of this name, or transformers does not know it.
    """
    made = transformers_library().AutoConfig
    if name in LLAMAS:
        return made.for_model(**_LLAMA, **LLAMAS[name])
    folder = find_model(name)
    config_of(folder / "config.json")
    try:
        return made.from_pretrained(folder)
    except Exception as error:  # whatever foreign code can say of a configuration
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise OptionError(f"{name}: its configuration cannot be used: {told}") from error


def sizes_of(config: Any, *, dtypes: tuple[str, ...], length: int, num_examples: int) -> Sizes:
    """The sizes of a causal model that has this configuration, built on the meta device.

    Args:
        config: of transformers.
        dtypes: number formats to tell the activations for, "float32" or "bfloat16".
        length: tokens of an example.
        num_examples: up to which the activations are wanted.

    Raises:
        OptionError: no causal model can be built or run from it.

    Cost: four forward and backward passes of each format without arithmetic; some seconds for a model of 80 blocks.
    """
    kept: dict[str, Activations] = {}
    again: dict[str, Activations] = {}
    module: nn.Module = nn.Identity()
    try:
        for dtype in dtypes:
            module = _built(config, dtype)
            for found, checkpointing in ((kept, False), (again, True)):
                if checkpointing:
                    _checkpoint(module)
                one, many = (pass_bytes(module, partial(_loss, count, length)) for count in (1, num_examples))
                found[dtype] = Activations(one, many / num_examples)
    except OptionError:
        raise
    except Exception as error:  # whatever foreign code can say on the meta device
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise OptionError(
            f"advise: a {config.model_type} cannot be run on the meta device ({told}). Its memory can be measured: "
            "leave out --memory and give its folder."
        ) from error
    parameters = {id(parameter): parameter for parameter in module.parameters()}
    inside = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks_of(module)]
    total = sum(parameter.numel() for parameter in parameters.values())
    return Sizes(
        num_weights=total,
        largest=max(parameter.numel() for parameter in parameters.values()),
        is_tied=bool(config.tie_word_embeddings),
        block=max(inside, default=0),
        rest=total - sum(inside),
        sides=tuple(layer.matrix_shape for layer in layers_of(module)),
        vocabulary=config.vocab_size,
        activations=kept,
        checkpointed=again,
    )


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model, such as the layers of a transformer: the list of modules with most weights."""
    lists = [list(found) for found in module.modules() if isinstance(found, nn.ModuleList) and len(found)]
    return max(lists, key=lambda blocks: sum(p.numel() for block in blocks for p in block.parameters()), default=[])


def _built(config: Any, dtype: str) -> nn.Module:
    transformers = transformers_library()
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).train()


def _checkpoint(module: nn.Module) -> None:
    bare: Any = module
    bare.config.use_cache = False
    enable = getattr(bare, "activation_checkpointing_enable", bare.gradient_checkpointing_enable)  # its older name
    enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), FlashAttention())})


def _loss(num_examples: int, length: int, model: nn.Module) -> Tensor:
    tokens = torch.empty(num_examples, length, dtype=torch.long, device="meta")
    return likelihood_of("causal-lm").nll(model(input_ids=tokens), ({}, tokens)).sum()
