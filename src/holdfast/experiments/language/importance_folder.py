"""An importance as a folder to share: tensors, what model they are of, and a card for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from holdfast.errors import ModelMismatchError
from holdfast.experiments.language.measuring import Kind, Progress
from holdfast.experiments.language.models import LanguageModel, tokenizer_hash
from holdfast.factored import AnyImportance, FactoredImportance, load_importance
from holdfast.files import new_folder, write_text


def importance_names(kind: Kind) -> tuple[str, ...]:
    """The files that are written in any case, of an importance of this kind."""
    factors = ("factors.safetensors",) if kind == "kfac" else ()
    return ("importance.safetensors", *factors, "importance_config.json", "README.md")


def write_importance(
    path: Path, importance: AnyImportance, model: LanguageModel, *, data: str, progress: Progress
) -> None:
    """Write the folder, whole or not at all.

    Args:
        path: of the folder.
        importance: as `measure` gave it.
        model: of which.
        data: on what.
        progress: how the measurement ended.

    Raises:
        OutputError: it cannot be written.
    """
    details = {
        **importance.info.details,
        "base_model": Path(model.name).name,
        "base_revision": model.revision,
        "tokenizer": tokenizer_hash(model.tokenizer),
        "task": model.task,
        "data": data,
        "seconds": round(progress.seconds, 1),
        "relative_error": progress.error,
    }
    described = importance.with_info(details=details)
    with new_folder(path, reading=[model.folder]) as folder:
        described.save(folder)
        write_text(folder / "README.md", card(described, progress))


def read_importance(path: str | Path, model: LanguageModel) -> AnyImportance:
    """The importance in a folder, if it is one of this very model.

    Raises:
        FileFormatError: the folder is missing, truncated or edited.
        ModelMismatchError: it was measured on other weights, or with another tokenizer.
        ParameterMismatchError: names or shapes do not match.
    """
    importance = load_importance(path, model=model.base)
    named = {key: importance.info.details.get(key) for key in ("base_model", "base_revision", "tokenizer")}
    if named["tokenizer"] not in (None, tokenizer_hash(model.tokenizer)):
        raise ModelMismatchError(
            f"{path} was measured with another tokenizer ({_short(named['tokenizer'])}) than that of {model.name} "
            f"({_short(tokenizer_hash(model.tokenizer))}). Use the tokenizer of {named['base_model']}."
        )
    if named["base_revision"] not in (None, model.revision):
        raise ModelMismatchError(
            f"{path} was measured on other weights of {named['base_model']} ({_short(named['base_revision'])}) than "
            f"those of {model.name} ({_short(model.revision)}). Fine-tune those it was measured on, or measure again: "
            f"holdfast importance {model.name} DATA -o {path}"
        )
    return importance


def card(importance: AnyImportance, progress: Progress) -> str:
    """The model card."""
    info = importance.info
    told = info.details
    is_factored = isinstance(importance, FactoredImportance)
    held = "--strength 0.1" if is_factored else "--budget 0.05"
    diagonal = importance.to_diagonal() if is_factored else importance
    weights = sum(value.numel() for value in diagonal.values())
    nats = "unknown" if info.nats_per_unit is None else f"{info.nats_per_unit:g}"
    return f"""# What {told["base_model"]} needs for its skill

How much each of its {weights:,} weights matters, measured with holdfast {info.library_version}.

| | |
| --- | --- |
| base model | {told["base_model"]} ({info.model}) |
| its weights | {told["base_revision"]} |
| its tokenizer | {told["tokenizer"]} |
| skill | {told["task"]}; likelihood: {info.loss or "none"} |
| kind | {info.kind} |
| unit | {info.unit}; nats per unit: {nats} |
| data | {told["data"]} |
| examples | {info.num_examples:,} |
| convergence | {progress.text} |
| cost | {progress.seconds:.0f} s |

Fine-tune the model without losing the skill:

    holdfast finetune {told["base_model"]} NEW-DATA --keep THIS-FOLDER --method ewc {held}

or in a loop of your own, on the part of the model that it names:

    importance = hf.{type(importance).__name__}.load("THIS-FOLDER", model=model)
    keeper = hf.EWC(model, {held.removeprefix("--").replace(" ", "=")}).attach(optimizer).retain(importance)

Where the importance is, {info.model}'s parameters by their share of the sum:

| parameters | weights | share |
| --- | --- | --- |
{_shares(diagonal)}
"""


def _shares(importance: Mapping[str, Tensor]) -> str:
    """A row for each part of the model, the numbers of its layers left out of the names."""
    sums: dict[str, tuple[int, float]] = {}
    for name, value in importance.items():
        key = ".".join("*" if piece.isdigit() else piece for piece in name.split("."))
        count, total = sums.get(key, (0, 0.0))
        sums[key] = (count + value.numel(), total + float(value.double().sum()))
    whole = sum(total for _, total in sums.values()) or 1.0
    return "\n".join(f"| {key} | {count:,} | {total / whole:.2%} |" for key, (count, total) in sums.items())


def _short(digest: object) -> str:
    return f"{str(digest).removeprefix('sha256:')[:12]}..."
