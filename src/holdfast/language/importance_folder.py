"""An importance as a folder to share: tensors, what model they are of, and a card for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from holdfast.curvature.factored import AnyImportance, load_importance
from holdfast.errors import ModelMismatchError
from holdfast.files import new_folder, write_text
from holdfast.language.heads import read_heads
from holdfast.language.measuring import Kind, MeasuringProgress
from holdfast.language.models import LanguageModel, package_of, tokenizer_hash
from holdfast.records import check_names


def importance_names(kind: Kind) -> tuple[str, ...]:
    """The files that are written in any case, of an importance of this kind."""
    factors = ("factors.safetensors",) if kind == "kfac" else ()
    return ("importance.safetensors", *factors, "importance_config.json", "README.md")


def write_importance_folder(
    path: Path,
    importance: AnyImportance,
    model: LanguageModel,
    *,
    data: str,
    progress: MeasuringProgress,
    length: int | None = None,
) -> None:
    """Write the folder, whole or not at all.

    Args:
        path: of the folder.
        importance: as `measure` gave it.
        model: of which.
        data: on what.
        progress: how the measurement ended.
        length: tokens of an example at most.

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
        **({"head": model.head} if model.own_part else {}),
        **({} if length is None else {"length": length}),
    }
    described = importance.with_info(details=details)
    with new_folder(path, reading=[model.folder]) as folder:
        described.save(folder)
        write_text(folder / "README.md", card(described, progress, model, folder=path))


def read_importance(path: str | Path, model: LanguageModel) -> AnyImportance:
    """The importance in a folder, if it is one of this very model.

    Raises:
        FileFormatError: the folder is missing, truncated or edited.
        ModelMismatchError: it was measured on other weights, or with another tokenizer.
        ParameterMismatchError: names or shapes do not match.
    """
    importance = load_importance(path)
    head = importance.info.details.get("head")
    if isinstance(head, str) and head not in model.head_labels:
        raise ModelMismatchError(
            f"{path} was measured with the head {head!r}, which {model.name} does not have; it has "
            f"{', '.join(map(repr, model.head_labels)) or 'none'}. Fine-tune the model that it was measured on, or "
            f"measure again: holdfast importance {model.name} DATA -o ANOTHER-FOLDER"
        )
    base = model.with_head(head).base if isinstance(head, str) else model.base
    check_names(importance.covers, base, where=str(path))
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
            f"holdfast importance {model.name} DATA -o ANOTHER-FOLDER"
        )
    return importance


def card(importance: AnyImportance, progress: MeasuringProgress, model: LanguageModel, *, folder: Path) -> str:
    """The model card; its lines of Python work as they stand where `folder` and the model's name are found.

    Nothing is to be tuned in them: they hold to a budget, whatever the form and the unit of the importance. Where that
    brings no probes along and was not calibrated, old data are to measure it, and must where its unit is not nats: then
    the lines want `old_batches`.
    """
    info = importance.info
    told = info.details
    known = importance.probes is not None or info.is_calibrated  # what a budget is kept by
    held = "--budget 0.05" if known else "--budget 0.05 --old-data OLD-DATA"
    diagonal = importance.to_diagonal()
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
| unit | {info.unit}; nats a target per unit: {nats} |
| data | {told["data"]} |
| examples | {info.num_examples:,} |
| targets | {info.num_targets:,} |
| convergence | {progress.text} |
| cost | {progress.seconds:.0f} s |

Fine-tune the model without losing the skill:

    holdfast finetune {_public(Path(model.name))} NEW-DATA --keep {_public(folder)} --method ewc {held}
{"" if known else _MEASURED}
Or in a loop of your own. The importance names the weights of the model as transformers loads it:

{_lines(importance, model, folder, known=known)}
{_note(model)}
Where the importance is, {info.model}'s parameters by their share of the sum:

| parameters | weights | share |
| --- | --- | --- |
{_shares(diagonal)}
"""


_MEASURED = """
The budget is then measured on the old data, which may be those that the importance was measured on: it brings no
probes along and is not calibrated, so that alone it foresees too little.
"""

_PROBES = "probes = hf.probes_of(model, old_batches)"


def _lines(importance: AnyImportance, model: LanguageModel, folder: Path, *, known: bool) -> str:
    """Python that loads the model as its users do, and holds it."""
    auto = {"causal-lm": "AutoModelForCausalLM", "classification": "AutoModelForSequenceClassification"}
    loader = auto.get(model.task, "AutoModel") if model.base is model.module else "AutoModel"
    package = package_of(model.name)
    imports, place = [], repr(_public(Path(model.name))).replace("'", '"')
    if package is not None:
        imports, place = ["from importlib.resources import files", ""], f'str(files("{package}") / "model")'
    imports += ["import torch", f"from transformers import {loader}", "", "import holdfast as hf"]
    loading = f"model = {loader}.from_pretrained({place})"
    if model.own_part and model.head != read_heads(model.folder)[0]:  # transformers knows the head in use alone
        imports = [line for line in imports if not line.startswith("from transformers")]
        imports += ["from holdfast.language.models import load_model"]
        loading = f'model = load_model({place}, head="{model.head}").module'
    given = ", probes=probes" if not known and importance.info.nats_per_unit is None else ""
    lines = [
        *imports,
        "",
        loading,
        f'importance = hf.{type(importance).__name__}.load("{_public(folder)}", model=model)',
        *([] if known else [_PROBES] if given else [f"# measured: {_PROBES}; retain(importance, probes=probes)"]),
        f'keeper = hf.EWC(model, budget=0.05, new_parameters="free").retain(importance{given})',
        "optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)",
        "keeper.attach(optimizer)  # and train as ever",
    ]
    return "\n".join(f"    {line}".rstrip() for line in lines)


def _note(model: LanguageModel) -> str:
    if model.base is model.module:
        return ""
    return (
        "\nOf a model that sentence-transformers has loaded it is `model = SentenceTransformer(...)[0].auto_model`.\n"
        "A pooler, which the mean over tokens goes past, is not held.\n"
    )


def _public(path: Path) -> str:
    """A path as it was given, and of an absolute one the last part: a card is made to be shared."""
    return path.name if path.is_absolute() else path.as_posix()


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
