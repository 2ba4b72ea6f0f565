"""Whether the targets of sequences are shifted: decided once for a model and its data, never example by example.

A causal language model predicts at position t the label of position t + 1, and its labels are its own inputs. Other
models predict at position t the label of position t, also where a label happens to equal the input: masked language
models, taggers, encoder-decoders whose sentence needs no correction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from holdfast.errors import BatchError
from holdfast.likelihoods.batches import targets_of
from holdfast.likelihoods.categorical import IGNORED, Categorical
from holdfast.tensors import class_of, unwrap

_CAUSAL = re.compile(r"ForCausal|(?<!XLNet)(?<!With)LMHeadModel|(GPT2|OpenAIGPT)DoubleHeadsModel")
"""Class names of Hugging Face's whose own loss shifts the labels. XLNet's, XLM's and Flaubert's does not."""

_IN_PLACE = re.compile(
    r"For(MaskedLM|PreTraining|Seq2SeqLM|SpeechSeq2Seq|TokenClassification|SequenceClassification|QuestionAnswering"
    r"|MultipleChoice|NextSentencePrediction|AudioFrameClassification|MaskedImageModeling|CTC)|XLNetLMHeadModel"
)
"""Class names whose loss compares position t with label t."""


@dataclass(frozen=True)
class Shift:
    """What was decided.

    Attributes:
        causal: whether position t predicts the label of position t + 1.
        by: who said so: the caller, the model's class and configuration, or the labels of the first batch.
        reason: the same in words.
    """

    causal: bool
    by: Literal["caller", "model", "labels"]
    reason: str


def shift_of_model(model: nn.Module) -> Shift | None:
    """What a Hugging Face model's class and configuration say; None where they say nothing, as for other models.

    An encoder-decoder (`config.is_encoder_decoder`) is not shifted. Else the class name decides, that of a base class
    for one derived from it: `...ForCausalLM` and `...LMHeadModel` are shifted, `...ForMaskedLM`,
    `...ForTokenClassification` and their like are not, `...ForConditionalGeneration` is shifted where the
    configuration says that it is no encoder-decoder. Wrappers are looked through (PEFT, DDP, FSDP, `torch.compile`, a
    module of one's own around the model) as long as one child holds all parameters.
    """
    module: nn.Module | None = unwrap(model)
    while module is not None:
        own = _of_module(module)
        if own is not None:
            return own
        module = _wrapped(module)
    return None


def shift_of(likelihood: Categorical, model: nn.Module, batch: Any) -> Shift | None:
    """Whether the targets of this batch and all later ones are shifted.

    The caller's word counts first; then the model's, unless the labels are shifted already (they are the next of the
    input tokens); then the labels: shifted where the batch is a mapping and all of its labels equal its `input_ids`
    but for -100.

    Args:
        likelihood: as the caller gave it.
        model: whose class and configuration are asked.
        batch: the first.

    Returns:
        None where the batch shows nothing: its targets are no sequences [B, T], or all of them are -100.
    """
    targets = targets_of(batch)
    if targets.ndim != 2 or not bool((targets != IGNORED).any()):
        return None
    if likelihood.causal is not None:
        return Shift(likelihood.causal, "caller", f"loss=Categorical(causal={likelihood.causal})")
    ids, own = _input_ids(batch), shift_of_model(model)
    ids = ids if ids is not None and ids.shape == targets.shape else None
    if own is None:
        same = ids is not None and isinstance(batch, Mapping) and num_other_labels(batch) == 0
        words = "equal its input_ids" if same else "are not its input_ids"
        return Shift(same, "labels", f"the labels of the first batch {words}")
    if own.causal and ids is not None and _is_shifted_already(targets, ids):
        return Shift(False, "labels", "the labels are shifted already: each is the next of the input tokens")
    return own


def decided(likelihood: Any, model: nn.Module, batch: Any) -> Any:
    """The likelihood with its `causal` settled for a model whose first batch this is; others as they are."""
    if not isinstance(likelihood, Categorical):
        return likelihood
    shift = shift_of(likelihood, model, batch)
    return likelihood if shift is None else replace(likelihood, causal=shift.causal)


def check_shift(shift: Shift, batch: Any, *, where: str) -> None:
    """Raise where labels alone have decided for a shift and those of a later batch speak against it.

    Raises:
        BatchError: a label differs from the input token of its own position.
    """
    if not (shift.causal and shift.by == "labels"):
        return
    different = num_other_labels(batch)
    if different:
        raise BatchError(
            f"{where}: all labels of the first batch equal its input_ids, as those of a causal language model do, and "
            f"{different} of a later batch differ. Whether position t predicts the label of position t + 1 is decided "
            "once for all batches, and the model has no configuration of Hugging Face's that says it. Pass "
            "loss=Categorical(causal=True) if it does, or loss=Categorical(causal=False) if it predicts its own label."
        )


def num_other_labels(batch: Any) -> int:
    """How many labels that count are not the input token of their own position; all where there are no such tokens."""
    targets, ids = targets_of(batch), _input_ids(batch)
    counts = targets != IGNORED
    if ids is None or ids.shape != targets.shape:
        return int(counts.sum())
    return int((counts & (targets != ids)).sum())


def _of_module(module: nn.Module) -> Shift | None:
    names = [kind.__name__ for kind in class_of(module).__mro__]
    is_encoder_decoder = getattr(getattr(module, "config", None), "is_encoder_decoder", None)
    if is_encoder_decoder is True:
        return Shift(False, "model", f"{names[0]}: an encoder-decoder")
    for name in names:
        if _IN_PLACE.search(name):
            return Shift(False, "model", f"class {name}")
        if _CAUSAL.search(name):
            return Shift(True, "model", f"class {name}")
        if "ForConditionalGeneration" in name and is_encoder_decoder is False:
            return Shift(True, "model", f"class {name}, no encoder-decoder")
    return None


def _wrapped(module: nn.Module) -> nn.Module | None:
    """The child that holds all parameters of a module; None where there is no such child."""
    holders = [child for child in module.children() if next(child.parameters(), None) is not None]
    own = next(module.parameters(recurse=False), None)
    return holders[0] if len(holders) == 1 and own is None else None


def _input_ids(batch: Any) -> Tensor | None:
    inputs: Any = batch if isinstance(batch, Mapping) else batch[0]
    if isinstance(inputs, Mapping):
        inputs = inputs.get("input_ids")
    elif isinstance(inputs, tuple | list) and inputs:
        inputs = inputs[0]
    return inputs if isinstance(inputs, Tensor) and not inputs.is_floating_point() else None


def _is_shifted_already(targets: Tensor, ids: Tensor) -> bool:
    """Whether more labels equal the next input token than the own one, and most of them do.

    Not all need to: the last label of a text may be an end that the inputs lack.
    """
    labels = targets[:, :-1]
    counts = labels != IGNORED
    own, following = ((counts & (labels == tokens)).sum() for tokens in (ids[:, :-1], ids[:, 1:]))
    return bool((following > own) & (2 * following > counts.sum()))
