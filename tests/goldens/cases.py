"""What is pinned: a tiny net that learns two made-up tasks for 50 steps, held in every way, by public names alone.

`cases()` is a table in which every pair of values that go together occurs; `run(case)` trains one of them. Nothing is
measured but in the cases of synaptic intelligence: importances are drawn from a seed, and so are the data.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

import holdfast as hf

STEPS, SECOND = 50, 25
"""Optimizer steps, and the one before which the second task is retained."""

MECHANISMS: dict[str, partial] = {
    "ewc": partial(hf.EWC, strength=1.0),
    "ewc-gradient": partial(hf.EWC, strength=0.5, pull="gradient"),
    "ewc-penalty": partial(hf.EWC, strength=0.5, pull="penalty"),
    "ewc-budget": partial(hf.EWC, budget=0.02),
    "ewc-path": partial(hf.EWC, strength=3.0),
    "kronecker": partial(hf.EWC, strength=0.3),
    "kronecker-penalty": partial(hf.EWC, strength=0.3, pull="penalty"),
    "wva": partial(hf.WVA, strength=3.0),
    "wva-exponential": partial(hf.WVA, strength=1.0, attenuation="exponential"),
    "wva-gradients": partial(hf.WVA, strength=3.0, on="gradients"),
}
"""`ewc-path`: the second importance is that of synaptic intelligence; `kronecker`: EWC on Kronecker factors."""

OPTIMIZERS: dict[str, partial] = {
    "sgd": partial(SGD, lr=0.05),
    "momentum": partial(SGD, lr=0.02, momentum=0.9),
    "nesterov": partial(SGD, lr=0.02, momentum=0.9, nesterov=True),
    "adam": partial(Adam, lr=0.02),
    "adamw": partial(AdamW, lr=0.02, weight_decay=0.1),
    "amsgrad": partial(Adam, lr=0.02, amsgrad=True),
    "rmsprop": partial(RMSprop, lr=0.01),
    "two": partial(SGD, lr=0.02, momentum=0.9),
}
"""`two`: that one for the first layer, and `adam` for the rest."""

FORMS: dict[str, dict[str, str]] = {
    "float32": {},
    "bfloat16": {"importance_dtype": "bfloat16"},
    "int8": {"importance_dtype": "int8", "anchor_dtype": "int16"},
    "half": {},
}
"""Of what is held; `half`: the weights are bfloat16."""

RULES = {"sum": "sum", "mean": "mean", "max": "max", "per_task": "per_task", "decayed": hf.Decayed(0.5)}


@dataclass(frozen=True)
class Case:
    mechanism: str
    optimizer: str
    form: str = "float32"
    every: int = 1
    rule: str = "sum"
    weighting: str = "task"
    strength: float | None = None  # None: the mechanism's own

    def __str__(self) -> str:
        return " ".join(str(value) for value in asdict(self).values() if value is not None)

    @property
    def can_be(self) -> bool:
        """Whether its values go together."""
        implicit = self.mechanism in ("ewc", "ewc-path", "kronecker")
        anchored, factored = not self.mechanism.startswith("wva"), self.mechanism.startswith("kronecker")
        return (
            (self.every == 1 or implicit)
            and (anchored or self.rule != "per_task")
            and not (factored and self.rule == "max")
        )

    def pairs(self) -> Iterator[tuple[tuple[str, Any], ...]]:
        """Every two of its values, with their names."""
        return combinations(asdict(self).items(), 2)


def every_case() -> Iterator[Case]:
    """All that can be, many more than are run."""
    found = product(MECHANISMS, OPTIMIZERS, FORMS, (1, 4), RULES, ("task", "examples"))
    return (case for values in found if (case := Case(*values)).can_be)


@cache
def table() -> tuple[Case, ...]:
    """Every mechanism under every optimizer, twice, each time with the values whose pairs were met least until then."""
    choices: dict[tuple[str, str], list[Case]] = {}
    for case in every_case():
        choices.setdefault((case.mechanism, case.optimizer), []).append(case)
    met: Counter = Counter()
    chosen = []
    for group in [*choices, *choices]:
        case = min(choices[group], key=lambda case: sorted(met[pair] for pair in case.pairs()))
        choices[group].remove(case)
        met.update(case.pairs())
        chosen.append(case)
    return tuple(chosen)


def cases() -> list[Case]:
    """The table, and strengths from nothing to infinity."""
    strengths = product(("ewc", "kronecker", "wva", "wva-exponential"), ("sgd", "adam"), (0.0, 1.0, 1e12, math.inf))
    return [*table(), *(Case(mechanism, optimizer, strength=strength) for mechanism, optimizer, strength in strengths)]


# --- one run


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(form: str = "float32") -> nn.Sequential:
    """69 weights, in four tensors of layers and two of a normalisation."""
    model, generator = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)), drawn(1)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.to(torch.bfloat16) if form == "half" else model


def optimizers_of(model: nn.Sequential, kind: str) -> list[Optimizer]:
    if kind != "two":
        return [OPTIMIZERS[kind](model.parameters())]
    rest = [parameter for layer in model[1:] for parameter in layer.parameters()]
    return [OPTIMIZERS["two"](model[0].parameters()), OPTIMIZERS["adam"](rest)]


@cache
def data(step: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a step; those of the second task are shifted."""
    generator, shift = drawn(100 + step), float(step >= SECOND)
    return torch.randn(8, 5, generator=generator) + shift, torch.randn(8, 3, generator=generator) - shift


def importance(task: int, *, factored: bool = False) -> hf.Importance | hf.FactoredImportance:
    """Made up: a fifth are zero, the others spread over four decades; factors are positive definite."""
    generator, which = drawn(10 + task), drawn(9)
    info = hf.ImportanceInfo(kind="made-up", num_examples=100 + 50 * task, nats_per_unit=1.0, unit="nats/weight^2")
    values = {}
    for name, parameter in network().named_parameters():
        size, zero = (torch.rand(parameter.shape, generator=drawing) for drawing in (generator, which))
        values[name] = torch.where(zero < 0.2, 0.0, 10 ** (4 * size - 3))
    if not factored:
        return hf.Importance(values, info)

    def second_moment(size: int) -> Tensor:
        rows = torch.randn(3 * size, size, generator=generator)
        return rows.T @ rows / len(rows)

    factors = {
        f"{at}.weight": hf.KroneckerFactors(
            shape=(rows, columns),
            bias=f"{at}.bias",
            inputs=second_moment(columns + 1),
            outputs=second_moment(rows),
        )
        for at, rows, columns in ((0, 6, 5), (3, 3, 6))
    }
    return hf.FactoredImportance(factors, {name: values[name] for name in ("1.weight", "1.bias")}, info)


def rmsprop_metric(group: Mapping[str, Any], _: nn.Parameter, state: Mapping[str, Any]) -> Tensor:
    return (state["square_avg"].float().sqrt() + group["eps"]) / group["lr"]


class Training:
    """A net in training, held as the case says.

    Args:
        case: what is trained, and how it is held.
        prepare: changes the new model in place, such as to shard it.
        share: (rank, processes): this process trains on the examples rank, rank + processes, and so on.
    """

    def __init__(
        self, case: Case, *, prepare: Callable[[nn.Sequential], None] | None = None, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.case, self.share = case, share
        self.model = network(case.form)
        if prepare is not None:
            prepare(self.model)
        self.optimizers = optimizers_of(self.model, case.optimizer)
        self.path = hf.SynapticIntelligence(self.model) if case.mechanism == "ewc-path" else None
        build = MECHANISMS[case.mechanism]
        is_wva = build.func is hf.WVA
        options: dict[str, Any] = {"accumulate": RULES[case.rule], "weighting": case.weighting, "log_every": 10}
        options |= {name: value for name, value in FORMS[case.form].items() if not (is_wva and name == "anchor_dtype")}
        if case.every > 1:
            options["every"] = case.every
        if case.strength is not None:
            options["strength"] = case.strength
        self.not_saved: dict[str, Any] = {}
        if case.optimizer == "rmsprop" and not is_wva and build.keywords.get("pull", "implicit") == "implicit":
            self.not_saved["metric"] = rmsprop_metric
        self.keeper = build(self.model, **options, **self.not_saved)

    def attach(self) -> Training:
        for optimizer in self.optimizers:
            if self.path is not None:
                self.path.attach(optimizer)
            self.keeper.attach(optimizer)
        return self

    def retain(self, task: int) -> None:
        if self.path is not None and task > 0:
            self.keeper.retain(self.path.importance(num_examples=150))
        else:
            self.keeper.retain(importance(task, factored=self.case.mechanism.startswith("kronecker")))

    def steps(self, begin: int, end: int) -> None:
        """Train from one step to before another; the tasks that begin on the way are retained first."""
        dtype, (rank, processes) = next(self.model.parameters()).dtype, self.share
        for step in range(begin, end):
            if step in (0, SECOND):
                self.retain(step // SECOND)
            inputs, targets = (tensor[rank::processes].to(dtype) for tensor in data(step))
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.model(inputs), targets)
            if self.case.mechanism.endswith("penalty"):
                loss = loss + self.keeper.penalty()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()

    def interrupted(self, way: str, folder: Path) -> Training:
        """The same in new objects, what is held taken along by `state`, `load` or `restore`."""
        other = Training(self.case)
        other.model.load_state_dict(self.model.state_dict())
        for new, old in zip(other.optimizers, self.optimizers, strict=True):
            new.load_state_dict(old.state_dict())
        if way == "state":
            tensors, notes = self.keeper.state()
            other.attach().keeper.load_state(tensors, json.loads(json.dumps(notes)))
        else:
            self.keeper.save(folder)
            if way == "load":
                other.keeper = type(self.keeper).load(folder, other.model, **other.not_saved)
                other.attach()
            else:
                other.attach().keeper.restore(folder)
        if other.path is not None and self.path is not None:
            other.path.load_state_dict(self.path.state_dict())
        return other

    def weights(self) -> Tensor:
        return flat(self.model)


def flat(model: nn.Module) -> Tensor:
    """All trained weights as one tensor."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters() if parameter.requires_grad])


@cache
def run(case: Case) -> Training:
    """The case at its end; not to be trained on."""
    training = Training(case).attach()
    training.steps(0, STEPS)
    return training


def run_interrupted(case: Case, way: str, folder: Path) -> Training:
    """The same with two interruptions, one in each task."""
    training = Training(case).attach()
    for begin, end in ((0, 13), (13, 38)):
        training.steps(begin, end)
        training = training.interrupted(way, folder / str(end))
    training.steps(38, STEPS)
    return training


def one_of_each() -> list[Case]:
    """The first case of the table for every mechanism and form: these are interrupted, and saved."""
    first: dict[tuple[str, str], Case] = {}
    for case in table():
        first.setdefault((case.mechanism, case.form), case)
    return list(first.values())


def saved_folder(folder: Path) -> dict[str, Any]:
    """What is in a keeper's folder: files, dtypes and shapes in them, keys of its description, and the options."""
    files: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        tensors = load_file(path) if path.suffix == ".safetensors" else {}
        files[path.name] = {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())}
    config = json.loads((folder / "keeper_config.json").read_text(encoding="utf-8"))
    keys = {key: sorted(value) if isinstance(value, dict) else None for key, value in config.items()}
    return {"files": files, "keys": keys, "options": config["options"], "factors": config.get("factors")}


# --- adapters

LORA = tuple(product(("sgd", "momentum", "adam", "adamw"), (0.3, math.inf)))


def run_lora(optimizer: str, strength: float) -> tuple[Tensor, str]:
    """The adapters' weights after training on the second task, and the report."""
    from peft import LoraConfig, get_peft_model

    from holdfast.integrations.peft import LoraEWC

    model, generator = get_peft_model(network(), LoraConfig(r=2, lora_alpha=4, target_modules=["0", "3"])), drawn(2)
    keeper = LoraEWC(model, strength=strength, log_every=10).retain(importance(0))  # to a product of zero
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    (built,) = optimizers_of(model, optimizer)
    keeper.attach(built)
    for step in range(SECOND, STEPS):
        inputs, targets = data(step)
        built.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        built.step()
    return flat(model), str(keeper.report())
