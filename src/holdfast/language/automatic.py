"""`--method auto`: what holds a model and what it rehearses, chosen from what is at hand, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.curvature.factored import AnyImportance, load_importance
from holdfast.errors import OptionError
from holdfast.importance import measure
from holdfast.language.checkpoints import MEASURED
from holdfast.language.finetuning import HoldOptions, flag
from holdfast.language.models import LanguageModel, LanguageTask
from holdfast.language.past import Past, RehearsalOptions
from holdfast.language.processes import ALONE, Processes
from holdfast.retention.elastic import BUDGET


@dataclass(frozen=True)
class AutomaticChoice:
    """What holds a model while it learns.

    Attributes:
        holding: how an importance is held; None: nothing is.
        rehearsing: what is rehearsed; None: nothing is.
        reasons: a line for each choice, none where the user made them.
    """

    holding: HoldOptions | None
    rehearsing: RehearsalOptions | None
    reasons: tuple[str, ...] = ()

    def lacks_probes(self, importance: AnyImportance | None) -> bool:
        """Whether a budget of EWC is to be kept, and the importance brings nothing to measure it on."""
        is_budget = self.holding is not None and self.holding.method == "ewc" and self.holding.budget is not None
        return is_budget and (importance is None or importance.probes is None)


def choose(
    ready: LanguageModel,
    asked: LanguageTask,
    importance: AnyImportance | None,
    holding: HoldOptions,
    rehearsing: RehearsalOptions | None,
) -> AutomaticChoice:
    """Choose curvature, budget and past; what the user gave stays as it is.

        importance with probes, or calibrated    EWC under the budget
        importance without                       the same, and a past is rehearsed
        none, and a past                         it is rehearsed; EWC under the budget on an importance of it
        none, and no past but the new data       old answers to these are rehearsed

    The past is what was given, else a causal model's own dreams, and of other models old answers to the new data. But
    for these a part of it is set apart, by which the budget is measured.

    Args:
        ready: the model before it learns.
        asked: the task that is learned.
        importance: of the old skill; None for none.
        holding: with a budget, where the user gave one.
        rehearsing: None where the user gave nothing.

    Raises:
        OptionError: a strength was given, or nothing of the old skill can be had.
    """
    if holding.strength is not None:
        raise OptionError(
            "finetune: --strength beside --method auto, which holds to a budget. Leave it out, or give --method ewc."
        )
    is_causal = ready.task == "causal-lm"
    turns = is_causal and asked != "causal-lm"
    if importance is None and turns:
        raise OptionError(
            f"finetune: {ready.name} was made for causal-lm and now learns {asked}; its old head is not kept, without "
            "which its past cannot be rehearsed. Give --keep DIR, written by holdfast importance."
        )
    reasons: list[str] = []
    trusted = importance is not None and (importance.probes is not None or importance.info.is_calibrated)
    if rehearsing is None and not trusted and not turns:
        lacking = "no importance was given" if importance is None else "the importance has neither probes nor a worth"
        rehearsing = RehearsalOptions("self" if is_causal else "new")
        own = "and a causal model can write its past" if is_causal else f"and {ready.name} writes no past of its own"
        what = "its own dreams" if is_causal else "its old answers to the new data"
        reasons.append(f"auto: rehearses {what}: {lacking}, {own}")
    if rehearsing is not None:
        reasons.append(f"auto: one step of {rehearsing.every} rehearses (share {rehearsing.share:g})")
    shows = rehearsing is not None and rehearsing.kind != "new"
    if importance is None and not shows:
        if holding.given:
            raise OptionError(
                f"finetune: {', '.join(map(flag, holding.given))} beside --method auto, which holds no weights here: "
                "there is no importance, and old answers to new data show none. Leave it out, or give --keep DIR."
            )
        reasons.append(
            "auto: no weights are held: new data do not show what the old skill rests on, as --rehearse DATA would"
        )
        return AutomaticChoice(None, rehearsing, tuple(reasons))
    if importance is None:
        reasons.append("auto: EWC on an importance of what is rehearsed, by hf.measure: none was given")
    else:
        form = "Kronecker factors" if importance.layers else "the diagonal"
        reasons.append(f"auto: EWC on {form} of the importance that was given")
    by = _measured_by(importance, watched=shows)
    given = holding.budget is not None
    budget = holding.budget if holding.budget is not None else BUDGET
    reasons.append(f"auto: a budget of {budget:g} nats a target, {'as given' if given else 'the default'}; {by}")
    return AutomaticChoice(replace(holding, method="ewc", budget=budget), rehearsing, tuple(reasons))


def importance_of_past(past: Past, *, seed: int, place: Path, processes: Processes = ALONE) -> AnyImportance:
    """What the skill rests on that a past shows; read where it was measured already.

    Args:
        past: with probes that were set apart.
        seed: of the labels that are drawn.
        place: of a folder of checkpoints, which are of this model and past alone.
        processes: that wait for the first, which measures.
    """
    path = place / MEASURED
    if processes.is_first and not path.is_dir():
        found = measure(past.judge.module, past.shown, probes=past.watched, loss=past.loss, seed=seed)
        found.save(path)
    processes.wait()
    return load_importance(path)


def _measured_by(importance: AnyImportance | None, *, watched: bool) -> str:
    if importance is not None and importance.probes is not None:
        return "measured on the importance's probes"
    if watched:
        return "measured on a part of the past that is set apart"
    calibrated = importance is not None and importance.info.is_calibrated
    return "foreseen by its calibrated forecast" if calibrated else "foreseen by its forecast, which is too small"
