"""What a method leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from holdfast.choices import check_choices
from holdfast.curvature import Accumulate, Decayed, Weighting
from holdfast.errors import OptionError
from holdfast.replay import Keep, ReplaySource

GeneratorName = Literal["vae", "cvae", "wgan-gp"]


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """The settings of all methods; each reads its own, and they mean what they mean in `EWC`, `WVA` and the estimators.

    Attributes:
        seed: of the stream's permutations, the initial weights, the order of batches and sampled labels.
        strength: of EWC or WVA; None with a budget.
        budget: nats per target, in place of EWC's strength.
        pull: EWC: "implicit", "gradient" or "penalty".
        pull_every: EWC: steps from one implicit pull to the next, each as strong as that many pulls together.
        attenuation: WVA: "hyperbolic" or "exponential".
        attenuate: WVA: "increments" or "gradients".
        accumulate: "sum", "mean", "max", "per_task" or "decayed:GAMMA".
        weighting: "task" or "examples", which weighs by targets.
        fisher: kind of Fisher: "exact", "sampled", "empirical" or "batched" (this one not of ewc-kfac).
        mas_output: MAS of the "logits" or the "softmax".
        mas_batched: MAS from the gradient over the whole set at once.
        signal_bias: importance of biases: mean absolute "output" of the layer, or "activation".
        damping: of SI.
        si_variant: SI as its authors have it ("zenke"), or with sums that go on over tasks and the gradient on the same
            batch after the step ("kutalev").
        si_gradient: SI of "zenke" takes the gradient "before" or "after" each step.
        buffer: er, der, agem: every past example is as likely to be kept ("reservoir"), or every class ("balanced").
        buffer_size: er, der, agem: how many examples are kept.
        der_alpha: der: weight of the squared distance to the kept logits.
        der_beta: der: weight of the loss on kept labels.
        imm: weights of all tasks merged by their "mean", or by their Fisher ("mode").
        l2_transfer: imm: weight of the squared distance to the weights of the task before.
        hat_scale: hat: s_max, how hard the gates are at test time.
        hat_sparsity: hat: c, the price of opening units.
        sfa_share: sfa: beta, the share of the old weights in the average.
        sfa_period: sfa: p, weights are averaged after every such part of a task's steps; 1: at its end alone.
        replay: DGR: where replayed inputs come from: "generative", or of the controls "exact", "noise", "none".
        generator: DGR: "vae", "cvae" (conditional on the class) or "wgan-gp".
        generator_units: of each of the two hidden layers of a VAE's encoder and decoder.
        generator_latent: length of a VAE's latent.
        generator_lr: of the generator's Adam; None: its own, 1e-3 of a VAE, 1e-4 of WGAN-GP.
        new_share: DGR: share of the new task in the loss, 0..1; None: 1/t at the t-th task.
        temperature: lwf, dgr-distilled: the distilled answers are softened by it.
        hold: DGR: the method that holds the solver besides, such as "ewc-fisher", at `strength` or `budget`.
        hold_generator: DGR: "ewc" or "wva" holds the generator besides, by its Fisher information.
        generator_strength: strength of the EWC or WVA that holds the generator.
    """

    seed: int = 0
    strength: float | None = None
    budget: float | None = None
    pull: Literal["implicit", "gradient", "penalty"] = "implicit"
    pull_every: int = 1
    attenuation: Literal["hyperbolic", "exponential"] = "hyperbolic"
    attenuate: Literal["increments", "gradients"] = "increments"
    accumulate: str = "sum"
    weighting: Weighting = "task"
    fisher: Literal["exact", "sampled", "empirical", "batched"] = "exact"
    mas_output: Literal["logits", "softmax"] = "logits"
    mas_batched: bool = False
    signal_bias: Literal["output", "activation"] = "output"
    damping: float = 0.1
    si_variant: Literal["zenke", "kutalev"] = "zenke"
    si_gradient: Literal["before", "after"] = "before"
    buffer: Keep = "reservoir"
    buffer_size: int = 500
    der_alpha: float = 0.5
    der_beta: float = 1.0
    imm: Literal["mean", "mode"] = "mean"
    l2_transfer: float = 0.0
    hat_scale: float = 400.0
    hat_sparsity: float = 0.75
    sfa_share: float = 0.5
    sfa_period: float = 0.25
    replay: ReplaySource = "generative"
    generator: GeneratorName = "vae"
    generator_units: int = 400
    generator_latent: int = 100
    generator_lr: float | None = None
    new_share: float | None = None
    temperature: float = 2.0
    hold: str | None = None
    hold_generator: Literal["ewc", "wva"] | None = None
    generator_strength: float | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        accumulation(self.accumulate)


def accumulation(text: str) -> Accumulate:
    """The rule that a text names: "sum", "mean", "max", "per_task" or "decayed:GAMMA".

    Raises:
        OptionError: it names none.
    """
    match text.split(":"):
        case ["sum" | "mean" | "max" | "per_task" as rule]:
            return rule
        case ["decayed", number]:
            try:
                gamma = float(number)
            except ValueError as error:
                raise OptionError(f"accumulate: {text!r} names no decay; expected such as 'decayed:0.9'.") from error
            return Decayed(gamma)
        case _:
            raise OptionError(f"accumulate is {text!r}; expected sum, mean, max, per_task or decayed:GAMMA.")
