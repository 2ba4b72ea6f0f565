"""Optimizers of other packages' forms: weights that move without a step, or that the optimizer has copies of."""

from __future__ import annotations

import torch
from torch.optim import SGD, Adam, Optimizer


class Sam(Optimizer):
    """Sharpness-aware: to a near worse point and back, then the step of the optimizer within."""

    def __init__(self, params, base, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.inner = base(self.param_groups, **options)

    def __getstate__(self):
        return {**super().__getstate__(), "inner": self.inner}  # torch's own leaves out what subclasses have

    @torch.no_grad()
    def first_step(self):
        for p in self._moving():
            self.state[p]["away"] = p.grad * self.defaults["rho"]
            p.add_(self.state[p]["away"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in self._moving():
            p.sub_(self.state[p]["away"])
        self.inner.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()

    def _moving(self):
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]


class WeightedSam(Sam):
    """As WSAM: what the sharpness adds comes after the step of the optimizer within."""

    @torch.no_grad()
    def second_step(self):
        sharp = [p.grad.clone() for p in self._moving()]
        moving = self._moving()
        super().second_step()
        for p, grad in zip(moving, sharp, strict=True):
            p.sub_(grad, alpha=0.1)


class SamAlone(SGD):
    """The same without an optimizer within: `second_step` moves the weights itself, by `.data`."""

    @torch.no_grad()
    def first_step(self):
        for p in self._moving():
            self.state[p]["away"] = p.grad * 0.05
            p.add_(self.state[p]["away"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(self.state[p]["away"] + group["lr"] * p.grad)
        self.zero_grad()

    def _moving(self):
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]


class Lomo(SGD):
    """Steps within the backward pass, one parameter after the other, and lets the gradient go."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.handles = [
            p.register_post_accumulate_grad_hook(self._move) for g in self.param_groups for p in g["params"]
        ]

    def fused_backward(self, loss, lr):
        loss.backward()

    def _move(self, p):
        p.data.sub_(p.grad, alpha=self.defaults["lr"])
        p.grad = None


class NamelessLomo(Lomo):
    """The same under another name."""

    fused_backward = None


def clearing(kind):
    """An optimizer whose step lets go of its gradients."""

    class Clearing(kind):
        @torch.no_grad()
        def step(self, closure=None):
            loss = super().step(closure)
            self.zero_grad()
            return loss

    return Clearing


class Private(Optimizer):
    """As Opacus': an optimizer around another, never initialised as one; it would clip and add noise."""

    def __init__(self, optimizer):
        self.original_optimizer = optimizer

    param_groups = property(lambda self: self.original_optimizer.param_groups)
    state = property(lambda self: self.original_optimizer.state)

    def zero_grad(self, set_to_none=True):
        self.original_optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        return self.original_optimizer.step(closure)


class OldLookahead(Optimizer):
    """As the first ones: it shares the groups of the optimizer it steps, and has hooks that nobody calls."""

    def __init__(self, base):
        self.base, self.param_groups, self.state = base, base.param_groups, base.state
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}

    def zero_grad(self, set_to_none=True):
        self.base.zero_grad(set_to_none)

    def step(self, closure=None):
        return self.base.step(closure)


class Lookahead:
    """Every second step halfway back to slow weights of its own."""

    def __init__(self, optimizer, k=2, alpha=0.5):
        self.optimizer, self.k, self.alpha, self.count = optimizer, k, alpha, 0
        self.state = {p: {"slow": p.detach().clone()} for g in optimizer.param_groups for p in g["params"]}

    def zero_grad(self):
        self.optimizer.zero_grad()

    @torch.no_grad()
    def step(self):
        self.optimizer.step()
        self.count += 1
        for p, state in self.state.items() if self.count % self.k == 0 else ():
            p.copy_(state["slow"].lerp_(p, self.alpha))


class ScheduleFree(SGD):
    """Goes on from weights z in its state; the model has a mixture of them and of their average."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.detach().clone())
                z.sub_(p.grad, alpha=group["lr"])
                p.lerp_(z, 0.5)

    def train(self):
        """The weights for training."""

    def eval(self):
        """The weights for evaluation."""


class MasterWeights(Optimizer):
    """Float32 weights in its state, of which the model's are a rounded copy."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                master = self.state[p].setdefault("master", p.detach().float().clone())
                p.copy_(master.sub_(p.grad.float(), alpha=group["lr"]))


class InnerLookahead(Adam):
    """As Ranger: slow weights in the state of the optimizer itself."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for p in (p for group in self.param_groups for p in group["params"]):
            state = self.state[p]
            slow = state.setdefault("slow_buffer", p.detach().clone())
            if state["step"] % 3 == 0:
                p.copy_(slow.lerp_(p, 0.5))


class RelativeSteps(SGD):
    """As Adafactor with relative_step: no learning rate but in its state."""

    def __init__(self, params, lr=None):
        super().__init__(params, lr=1.0)
        for group in self.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=1e-2 if group["lr"] is None else float(group["lr"]))
