"""Models of kinds that trip estimators up, measured in batches of several sizes and compared with plain loops."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast as hf
from holdfast.likelihoods.outputs import logits_of

Batch = dict[str, Any]


class Apply(nn.Module):
    """A module whose forward pass is a function of itself and the inputs; labels are not among these."""

    def __init__(self, function: Callable[..., Any], **modules: Any) -> None:
        super().__init__()
        self._function = function
        for name, module in modules.items():
            setattr(self, name, module)
        self.double()

    def forward(self, labels: Tensor | None = None, **inputs: Any) -> Any:
        return self._function(self, **inputs)


def one_of(batch: Batch, b: int) -> Batch:
    return {key: value[b : b + 1] if hasattr(value, "__len__") else value for key, value in batch.items()}


def loop(model: nn.Module, batches: Sequence[Batch], score: Callable[[Any, Batch], Tensor], phi: str) -> Any:
    """Name -> mean over examples of the square or the absolute value of the gradient of one example's score."""
    model.eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    totals, count = {name: torch.zeros_like(p) for name, p in parameters.items()}, 0
    for batch in batches:
        for b in range(len(batch["labels"])):
            one, count = one_of(batch, b), count + 1
            found = torch.autograd.grad(score(model(**one), one), list(parameters.values()), allow_unused=True)
            for name, g in zip(parameters, found):
                if g is not None:
                    totals[name] += g.square() if phi == "square" else g.abs()
    return {name: total / count for name, total in totals.items()}


def nll(outputs: Any, batch: Batch) -> Tensor:
    logits = logits_of(outputs)
    return F.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten(), reduction="sum")


def length(outputs: Any, _: Batch) -> Tensor:
    return logits_of(outputs).square().sum()


def assert_close(found: Any, expected: dict[str, Tensor], *, rtol: float = 1e-4) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        error = (found[name].double() - value.double()).norm()
        assert error <= rtol * value.norm() + 1e-12, f"{name}: off by {float(error / value.norm()):.1e}"


def vectors(*sizes: int, **others: Callable[[int], Any]) -> list[Batch]:
    return [
        {"x": torch.randn(b, 5).double(), "labels": torch.randint(0, 3, (b,)), **{k: f(b) for k, f in others.items()}}
        for b in sizes
    ]


def check_fisher_and_mas(model: nn.Module, batches: list[Batch]) -> None:
    assert_close(hf.fisher(model, batches, kind="empirical"), loop(model, batches, nll, "square"))
    assert_close(hf.mas(model, batches), loop(model, batches, length, "abs"))


def sparse_graphs() -> tuple[nn.Module, list[Batch]]:
    def forward(self: Any, x: Tensor, edges: Tensor) -> Tensor:
        size, nodes, _ = x.shape
        joined = torch.block_diag(*edges).to_sparse()
        h = torch.sparse.mm(joined, self.inner(x).reshape(size * nodes, -1)).relu()
        return self.outer(h.view(size, nodes, -1).sum(1))

    batches = [
        {
            "x": torch.randn(b, n, 4).double(),
            "edges": (torch.rand(b, n, n) < 0.5).double(),
            "labels": torch.randint(0, 3, (b,)),
        }
        for b, n in ((3, 4), (5, 4), (2, 6), (1, 5))
    ]
    return Apply(forward, inner=nn.Linear(4, 6), outer=nn.Linear(6, 3)), batches


def sparse_features() -> tuple[nn.Module, list[Batch]]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.outer((x * (x > 0)).to_sparse_csr() @ self.table)

    return Apply(forward, table=nn.Parameter(torch.randn(5, 6)), outer=nn.Linear(6, 3)), vectors(4, 7, 1)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.filterwarnings("ignore:.*one example at a time, right but slow")
@pytest.mark.parametrize("kind", [sparse_graphs, sparse_features])
def test_a_model_may_make_sparse_tensors(kind):
    check_fisher_and_mas(*kind())


def plain(h: Tensor, w: Tensor) -> Tensor:
    return (h @ w).relu()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_functions_under_compile_run_as_they_are(backend):
    model = Apply(
        lambda self, x: self.outer(self.fused(self.inner(x), self.middle)),
        inner=nn.Linear(5, 6),
        middle=nn.Parameter(torch.randn(6, 6)),
        outer=nn.Linear(6, 3),
    )
    batches = vectors(4, 7, 1)
    model.fused = torch.compile(plain, backend=backend)
    fisher = hf.fisher(model, batches, kind="empirical")
    factored = hf.kfac(model, batches, kind="empirical")
    model.fused = plain
    expected = loop(model, batches, nll, "square")
    assert_close(fisher, expected)
    assert set(factored) == {"inner.weight", "outer.weight"}
    assert_close(factored.diagonal, {"middle": expected["middle"]})


def sequences(*shapes: tuple[int, int], **others: Callable[[int, int], Any]) -> list[Batch]:
    return [
        {
            "x": torch.randint(0, 11, (b, n)),
            "labels": torch.randint(0, 3, (b,)),
            **{key: make(b, n) for key, make in others.items()},
        }
        for b, n in shapes
    ]


def in_order(time_first: Callable[[Tensor, Any], bool], turn: Callable[[Tensor], Tensor]) -> nn.Module:
    """Works on rows of positions, in the order of the examples or in that of time."""

    def forward(self: Any, x: Tensor, flag: Any = None) -> Tensor:
        h, first = self.table(x), time_first(x, flag)
        h = turn(h) if first else h
        h = self.inner(h.reshape(-1, 6)).relu().view(*h.shape[:2], 6)
        return self.outer((turn(h) if first else h).mean(1))

    return Apply(forward, table=nn.Embedding(11, 6), inner=nn.Linear(6, 6), outer=nn.Linear(6, 3))


SHAPES = (4, 6), (4, 8), (6, 10), (2, 6), (1, 9), (8, 6), (3, 9)

CHOICES = {
    "by length": (lambda x, _: x.shape[1] > 6, lambda h: h.transpose(0, 1)),
    "by number": (lambda x, _: len(x) > 4, lambda h: h.permute(1, 0, 2)),
    "by a flag": (lambda _, flag: flag, lambda h: h.movedim(0, 1)),
    "by einsum": (lambda x, _: len(x) > 4, lambda h: torch.einsum("abc->bac", h)),
    "by stack": (lambda x, _: x.shape[1] > 6, lambda h: torch.stack(list(h), dim=1)),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_lengths_numbers_and_flags_may_choose_the_order_of_axes(choice):
    model = in_order(*CHOICES[choice])
    batches = sequences(*SHAPES)
    if choice == "by a flag":
        for number, batch in enumerate(batches):
            batch["flag"] = number % 2 == 1
    check_fisher_and_mas(model, batches)


@pytest.mark.parametrize("measure", [hf.fisher, hf.mas])
def test_examples_that_mix_in_large_batches_only_are_refused(measure):
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.outer(h - h.mean(0) if len(x) > 4 else h)

    model = Apply(forward, inner=nn.Linear(5, 6), outer=nn.Linear(6, 3))
    measure(model, vectors(4, 3))
    with pytest.raises(hf.HoldfastError, match=r"mixes its examples .* its outputs for example \d of a batch of \d+ "):
        measure(model, vectors(4, 7))


def ragged(*lengths: Sequence[int], positions: bool = False) -> list[Batch]:
    batches = []
    for each in lengths:
        there = torch.arange(max(each)) < torch.tensor(each).unsqueeze(1)
        x = torch.randint(1, 11, there.shape).masked_fill(~there, 0)
        labels = torch.randint(0, 3, there.shape).masked_fill(~there, -100)
        batches.append({"x": x, "labels": labels if positions else labels[:, 0]})
    return batches


def trimmed() -> nn.Module:
    """Cuts its inputs to the longest of them, and so its outputs."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.outer(self.table(x[:, : int((x != 0).sum(1).max())]))

    return Apply(forward, table=nn.Embedding(11, 6), outer=nn.Linear(6, 3))


def packed() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        lengths = (x != 0).sum(1)
        rows = nn.utils.rnn.pack_padded_sequence(self.table(x), lengths, batch_first=True, enforce_sorted=False)
        return self.outer(nn.utils.rnn.pad_packed_sequence(self.inner(rows)[0], batch_first=True)[0])

    return Apply(forward, table=nn.Embedding(11, 6), inner=nn.GRU(6, 4, batch_first=True), outer=nn.Linear(4, 3))


LENGTHS = (6, 6, 6, 6), (3, 5, 2, 6, 1), (4, 3, 3), (2, 8, 7), (5,)


def halting() -> nn.Module:
    """Goes on until no example wants to; those that had enough keep what they have."""

    def forward(self: Any, x: Tensor) -> Tensor:
        h, steps = self.table(x).mean(1), (x != 0).sum(1)
        for step in range(8):
            if not (steps > step).any():
                break
            h = torch.where((steps > step).unsqueeze(1), h + self.inner(h).tanh(), h)
        return self.outer(h)

    return Apply(forward, table=nn.Embedding(11, 6), inner=nn.Linear(6, 6), outer=nn.Linear(6, 3))


def signals(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    """The signal of the Linear layers, from hooks, one example at a time."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    rows: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = [
        module.register_forward_hook(lambda _, args, __, name=name: rows[name].append(args[0].detach().flatten(0, -2)))
        for name, module in layers.items()
    ]
    for batch in batches:
        for b in range(len(batch["labels"])):
            model(**one_of(batch, b))
    for handle in handles:
        handle.remove()
    means = {name: torch.cat(found).abs().mean(0) for name, found in rows.items()}
    return {f"{name}.weight": layers[name].weight.detach().abs() * mean for name, mean in means.items()}


@pytest.mark.parametrize(
    ("make", "positions"), [(trimmed, True), (packed, True), (halting, False)], ids=["trimmed", "packed", "halting"]
)
def test_padding_and_steps_that_an_example_lacks_alone_carry_no_signal(make, positions):
    model, batches = make(), ragged(*LENGTHS, positions=positions)
    found = hf.signal(model, batches, others="zero")
    expected = signals(model, batches)
    assert_close({name: found[name] for name in expected}, expected)


@pytest.mark.filterwarnings("ignore:.*one example at a time, right but slow")
@pytest.mark.parametrize("make", [trimmed, packed])
@pytest.mark.parametrize("measure", [hf.fisher, hf.kfac])
def test_as_many_positions_as_classes_leave_no_doubt_after_a_batch_that_has_more(make, measure):
    model = make()
    batches = ragged((6, 6), (4, 2), (3, 3, 3), (3, 1), positions=True)
    singles = [one_of(batch, b) for batch in batches for b in range(len(batch["labels"]))]
    found = measure(model, batches, kind="empirical", **({} if measure is hf.fisher else {"factors": "expand"}))
    if measure is hf.fisher:
        share = len(singles) / sum(int((batch["labels"] != -100).sum()) for batch in batches)
        expected = loop(model, [cut(one) for one in singles], nll, "square")
        assert_close(found, {name: value * share for name, value in expected.items()})
        return
    torch.testing.assert_close(
        found["outer.weight"].inputs.double(), inputs_of_last(model, singles), rtol=1e-4, atol=1e-7
    )


def cut(one: Batch) -> Batch:
    length = int((one["x"] != 0).sum())
    return {**one, "labels": one["labels"][:, :length]}


def inputs_of_last(model: nn.Module, singles: list[Batch]) -> Tensor:
    """A of the layer `outer`: the mean over examples of the sum over positions of a a^T."""
    total: Tensor | float = 0.0

    def add(_: nn.Module, args: tuple[Tensor], __: Tensor) -> None:
        nonlocal total
        rows = F.pad(args[0].detach().flatten(0, -2), (0, 1), value=1.0)
        total = rows.T @ rows + total

    handle = model.outer.register_forward_hook(add)
    for one in singles:
        model(**one)
    handle.remove()
    return total / len(singles)


def by_slices() -> nn.Module:
    """Leaves padding out by lengths that Python knows, not torch."""

    def forward(self: Any, x: Tensor, lengths: Any) -> Tensor:
        rows = torch.cat([x[b, : int(n)] for b, n in enumerate(lengths)])
        h = self.inner(self.table(rows)).relu()
        return self.outer(torch.stack([part.mean(0) for part in h.split([int(n) for n in lengths])]))

    return Apply(forward, table=nn.Embedding(11, 6), inner=nn.Linear(6, 6), outer=nn.Linear(6, 3))


def by_packing() -> nn.Module:
    def forward(self: Any, x: Tensor, lengths: Any) -> Tensor:
        lengths = torch.as_tensor(lengths)
        rows = nn.utils.rnn.pack_padded_sequence(self.table(x), lengths, batch_first=True, enforce_sorted=False)
        h = nn.utils.rnn.pad_packed_sequence(rows._replace(data=self.inner(rows.data).tanh()), batch_first=True)[0]
        return self.outer(h.sum(1))

    return Apply(forward, table=nn.Embedding(11, 6), inner=nn.Linear(6, 6), outer=nn.Linear(6, 3))


def with_lengths(form: Callable[[Sequence[int]], Any], *, equal: int = 6) -> list[Batch]:
    """First some batches whose lengths show nothing."""
    lengths = [(6, 6, 6, 6)] * equal + [(3, 5, 2, 6), (3, 5, 2, 6, 1), (1, 7), (5,)]
    return [{**batch, "lengths": form(each)} for batch, each in zip(ragged(*lengths), lengths)]


@pytest.mark.parametrize("form", [list, tuple, np.array], ids=["list", "tuple", "array"])
@pytest.mark.parametrize("make", [by_slices, by_packing])
def test_a_batch_may_hold_lists_with_an_entry_for_each_example(make, form):
    model, batches = make(), with_lengths(form)
    check_fisher_and_mas(model, batches)
    factored = hf.kfac(model, batches, kind="empirical")
    singles = [one_of(batch, b) for batch in batches for b in range(len(batch["labels"]))]
    torch.testing.assert_close(
        factored["outer.weight"].inputs.double(), inputs_of_last(model, singles), rtol=1e-4, atol=1e-7
    )
    found, expected = hf.signal(model, batches, others="zero"), signals(model, batches)
    assert_close({name: found[name] for name in expected}, expected)


def test_so_many_examples_have_so_many_entries():
    model, batches = by_slices(), with_lengths(list, equal=0)
    found = hf.fisher(model, batches, kind="empirical", num_examples=6)
    some = [batches[0], {key: value[:2] for key, value in batches[1].items()}]
    assert_close(found, loop(model, some, nll, "square"))


@pytest.mark.parametrize("sizes", [(2, 5, 2, 1), (1, 2, 3), (4, 2)])
def test_a_list_that_is_the_same_for_all_examples_stays_whole(sizes):
    model = Apply(
        lambda self, x, scales, names: self.outer(sum(scale * self.inner(x).tanh() for scale in scales)),
        inner=nn.Linear(5, 6),
        outer=nn.Linear(6, 3),
    )
    batches = vectors(*sizes, names=lambda b: [f"number {i}" for i in range(b)])
    expected = loop(model, [{**batch, "scales": Whole((0.5, 2.0))} for batch in batches], nll, "square")
    found = hf.fisher(model, [{**batch, "scales": [0.5, 2.0]} for batch in batches], kind="empirical")
    assert_close(found, expected)


class Whole(tuple[float, ...]):
    """Stays itself where the examples are taken apart."""

    def __getitem__(self, part: Any) -> Any:
        return self if isinstance(part, slice) else super().__getitem__(part)


@pytest.mark.filterwarnings("ignore:.*one example at a time, right but slow")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_layers_may_work_on_nested_tensors(layout):
    def forward(self: Any, x: Tensor) -> Tensor:
        h, counts = self.table(x), (x != 0).sum(1).tolist()
        nested = torch.nested.as_nested_tensor([row[:n] for row, n in zip(h, counts)], layout=layout)
        return self.outer(torch.nested.to_padded_tensor(self.inner(nested), 0.0).sum(1))

    model = Apply(forward, table=nn.Embedding(11, 6), inner=nn.Linear(6, 6), outer=nn.Linear(6, 3))
    batches = ragged((6, 6, 6), (3, 5, 2), (4,))
    check_fisher_and_mas(model, batches)
    rows = [model.table(x[x != 0]).detach() for batch in batches for x in batch["x"]]
    mean = torch.cat(rows).abs().mean(0)
    found = hf.signal(model, batches, others="zero")
    assert_close({"inner.weight": found["inner.weight"]}, {"inner.weight": model.inner.weight.detach().abs() * mean})
    with_one = [F.pad(each, (0, 1), value=1.0) for each in rows]
    expected = sum((each.T @ each for each in with_one), torch.zeros(7, 7).double()) / len(rows)
    factors = hf.kfac(model, batches, kind="empirical", factors="expand")["inner.weight"]
    torch.testing.assert_close(factors.inputs.double(), expected, rtol=1e-4, atol=1e-7)
    gradients = torch.zeros(6, 6).double()
    for batch in batches:
        for b, x in enumerate(batch["x"]):
            one, length = one_of(batch, b), int((x != 0).sum())
            z = model.inner(model.table(x[:length])).detach().requires_grad_()
            (g,) = torch.autograd.grad(nll(model.outer(z.sum(0, keepdim=True)), one), z)
            gradients += g.T @ g / length / len(rows)
    torch.testing.assert_close(factors.outputs.double(), gradients, rtol=1e-4, atol=1e-7)


def switch() -> tuple[nn.Module, list[Batch]]:
    """Experts that take the rows whose values choose them, and a table of positions that is used in an unknown way."""

    def forward(own: Any, x: Tensor) -> Tensor:
        rows = (x + own.shift[torch.arange(3)].cumsum(0)).flatten(0, 1)
        chosen, out = own.router(rows).argmax(1), torch.zeros_like(rows)
        for number in chosen.unique():
            places = (chosen == number).nonzero().squeeze(1)
            out = out.index_add(0, places, own.experts[int(number)](rows[places]))
        return own.head(out.view_as(x).mean(1))

    experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    model = Apply(forward, router=nn.Linear(4, 2), experts=experts, head=nn.Linear(4, 3))
    model.shift = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    return model, vectors(4, 3, 5, x=lambda size: torch.randn(size, 3, 4, dtype=torch.float64))


def masked() -> tuple[nn.Module, list[Batch]]:
    """Entries of the inputs that are large are summed, after a weight that is used in an unknown way."""

    def forward(own: Any, x: Tensor) -> Tensor:
        h = own.first(x * own.scale.cumprod(0))
        kept = torch.zeros_like(h).masked_scatter(h > 0, h.masked_select(h > 0))
        return own.head(kept)

    model = Apply(forward, first=nn.Linear(4, 6), head=nn.Linear(6, 3))
    model.scale = nn.Parameter(torch.rand(4, dtype=torch.float64) + 0.5)
    return model, vectors(4, 3, 5, x=lambda size: torch.randn(size, 4, dtype=torch.float64))


@pytest.mark.parametrize("kind", [switch, masked])
def test_rows_selected_by_their_values_never_go_through_vmap(kind):
    """There is no rule for them, and torch ends the process of some models (Switch Transformers)."""
    torch.manual_seed(0)
    model, batches = kind()
    with pytest.warns(UserWarning, match="it selects rows by their values"):
        found = hf.fisher(model, batches, kind="empirical")
    assert_close(found, loop(model, batches, nll, "square"))
