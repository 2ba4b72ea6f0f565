import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.errors import EmptyDataError, NotFiniteError, OptionError
from holdfast.lab.streams.examples import Examples
from holdfast.lab.training import accuracy, build_optimizer, mlp, num_epochs, task_loss, train_epoch


def examples(n: int = 50, *, inputs: int = 6, classes: int = 4, dtype: torch.dtype = torch.float32) -> Examples:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, inputs, generator=generator, dtype=dtype)
    return Examples(x, torch.randint(classes, (n,), generator=generator))


def net(*, dropout: bool = False) -> nn.Module:
    model = mlp(6, (5,), 4, seed=1)
    return nn.Sequential(nn.Dropout(0.3), model) if dropout else model


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_an_epoch_is_that_of_a_bare_torch_loop_bit_for_bit(name, dropout):
    data, model, bare = examples(), net(dropout=dropout), net(dropout=dropout)
    loss = train_epoch(
        model, build_optimizer(name, model.parameters(), lr=0.1, weight_decay=0.01), data, batch_size=16, seed=7
    )

    optimizer = build_optimizer(name, bare.parameters(), lr=0.1, weight_decay=0.01)
    torch.manual_seed(7)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(7))
    losses = []
    for start in range(0, len(data), 16):
        chosen = order[start : start + 16]
        optimizer.zero_grad()
        one = F.cross_entropy(bare(data.inputs[chosen]), data.targets[chosen])
        one.backward()
        optimizer.step()
        losses.append(one.item())
    assert same(weights(model), weights(bare))
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)


@pytest.mark.parametrize("dropout", [False, True])
def test_an_epoch_hangs_on_its_seed_and_on_no_global_state(dropout):
    outcomes = []
    for state, seed in ((0, 5), (99, 5), (0, 6)):
        torch.manual_seed(state)
        model = net(dropout=dropout)
        train_epoch(model, build_optimizer("sgd", model.parameters(), lr=0.1), examples(), batch_size=16, seed=seed)
        outcomes.append(weights(model))
    assert same(outcomes[0], outcomes[1])
    assert not same(outcomes[0], outcomes[2])


def test_it_trains_in_training_mode():
    model = net(dropout=True).eval()
    train_epoch(model, build_optimizer("sgd", model.parameters(), lr=0.1), examples(), batch_size=50, seed=0)
    assert model.training


def test_columns_are_cross_entropy_over_those_alone():
    """Task (0, 1) and task (2, 3): the loss and its gradient see the columns of the example's own task only."""
    data = examples(dtype=torch.float64)
    own = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    model, bare = net().double(), net().double()
    optimizer = build_optimizer("sgd", model.parameters(), lr=0.5)
    loss = train_epoch(model, optimizer, data, batch_size=len(data), seed=0, columns=own)

    logits = bare(data.inputs)
    low = data.targets < 2
    losses = torch.cat(
        [
            F.cross_entropy(logits[low][:, :2], data.targets[low], reduction="none"),
            F.cross_entropy(logits[~low][:, 2:], data.targets[~low] - 2, reduction="none"),
        ]
    )
    losses.mean().backward()
    assert loss == pytest.approx(losses.mean().item(), rel=1e-12)
    for trained, parameter in zip(model.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(trained.detach(), (parameter - 0.5 * parameter.grad).detach())


def test_columns_that_take_no_part_keep_their_weights():
    data = examples(classes=2)
    columns = torch.zeros(4, 4, dtype=torch.bool)
    columns[:2, :2] = True
    model = net()
    before = weights(model)
    train_epoch(
        model, build_optimizer("adam", model.parameters(), lr=0.1), data, batch_size=16, seed=0, columns=columns
    )
    after = weights(model)
    assert torch.equal(before[-2][2:], after[-2][2:])
    assert not torch.equal(before[-2][:2], after[-2][:2])


@pytest.mark.parametrize(("num_steps", "taken"), [(None, 4), (3, 3), (4, 4), (9, 4)])
def test_steps_of_an_epoch(num_steps, taken):
    model, steps = net(), []
    optimizer = build_optimizer("sgd", model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: steps.append(-1))
    train_epoch(model, optimizer, examples(50), batch_size=16, seed=0, num_steps=num_steps, before_step=steps.append)
    assert steps == [entry for step in range(taken) for entry in (step, -1)]


def test_after_a_step_its_batch_is_shown():
    model, seen = net(), []
    optimizer = build_optimizer("sgd", model.parameters(), lr=0.1)

    def after(inputs: torch.Tensor, targets: torch.Tensor, columns: torch.Tensor | None) -> None:
        seen.append((inputs, targets, columns, weights(model)))

    asked = []
    optimizer.register_step_pre_hook(lambda *_: asked.append(weights(model)))
    train_epoch(model, optimizer, examples(50), batch_size=16, seed=0, after_step=after)
    assert [len(inputs) for inputs, *_ in seen] == [16, 16, 16, 2]
    data = examples(50)
    rows = {tuple(row.flatten().tolist()): int(label) for row, label in zip(data.inputs, data.targets, strict=True)}
    for inputs, targets, columns, _ in seen:
        assert [rows[tuple(row.flatten().tolist())] for row in inputs] == targets.tolist()
        assert columns is None
    assert all(not same(before, seen[step][3]) for step, before in enumerate(asked))  # it comes after the step
    assert all(same(before, seen[step][3]) for step, before in enumerate(asked[1:]))


def test_a_learning_rate_set_before_a_step_is_the_one_it_takes():
    model = net()
    optimizer = build_optimizer("sgd", model.parameters(), lr=0.1)

    def no_rate(_: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.0

    before = weights(model)
    train_epoch(model, optimizer, examples(), batch_size=16, seed=0, before_step=no_rate)
    assert same(before, weights(model))


def test_an_added_loss_moves_the_weights_and_is_not_reported():
    plain, pulled = net(), net()
    kwargs = {"batch_size": 50, "seed": 0}
    loss = train_epoch(plain, build_optimizer("sgd", plain.parameters(), lr=0.1), examples(), **kwargs)
    total = train_epoch(
        pulled,
        build_optimizer("sgd", pulled.parameters(), lr=0.1),
        examples(),
        loss=lambda *batch: (task_loss(pulled, *batch), 3.0 * next(pulled.parameters()).sum()),
        **kwargs,
    )
    assert loss == total
    difference = next(plain.parameters()) - next(pulled.parameters())
    torch.testing.assert_close(difference, torch.full_like(difference, 0.3))


def test_clipped_gradients_have_at_most_that_norm():
    model, lr = net(), 0.1
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer("sgd", model.parameters(), lr=lr)
    train_epoch(model, optimizer, examples(), batch_size=50, seed=0, num_steps=1, clip=1e-3)
    moved = torch.cat([(new - old).flatten() for new, old in zip(model.parameters(), before, strict=True)])
    torch.testing.assert_close(moved.norm(), torch.tensor(lr * 1e-3), rtol=1e-3, atol=0)


def test_no_examples_is_an_error():
    model = net()
    with pytest.raises(EmptyDataError, match=r"train_epoch: the task has no training examples. Check the stream"):
        train_epoch(model, build_optimizer("sgd", model.parameters(), lr=0.1), examples(0), batch_size=1, seed=0)
    with pytest.raises(EmptyDataError, match=r"accuracy: there are no examples to measure on"):
        accuracy(model, examples(0))


def test_training_that_diverged_says_so():
    model = net()
    optimizer = build_optimizer("sgd", model.parameters(), lr=1e30)
    with pytest.raises(
        NotFiniteError,
        match=r"the training loss is nan after 7 steps: training has diverged. Lower the learning rate, "
        r"which is 1e\+30, or so\.",
    ):
        train_epoch(model, optimizer, examples(), batch_size=8, seed=0, steadier=", or so")


def test_a_batch_of_nothing_is_an_error():
    model = net()
    with pytest.raises(OptionError, match="size=0"):
        train_epoch(model, build_optimizer("sgd", model.parameters(), lr=0.1), examples(), batch_size=0, seed=0)


class TestAccuracy:
    logits = torch.tensor([[5.0, 1.0, 2.0], [5.0, 4.0, 3.0], [0.0, 1.0, 2.0], [3.0, 2.0, 9.0]])

    def test_by_hand(self):
        data = Examples(self.logits, torch.tensor([0, 0, 1, 0]))
        assert accuracy(nn.Identity(), data) == 0.5
        assert accuracy(nn.Identity(), data, classes=(0, 1)) == 1.0
        assert accuracy(nn.Identity(), data, classes=(2, 1)) == 0.0
        assert accuracy(nn.Identity(), data, classes=(0,)) == 0.75

    def test_more_than_one_batch(self):
        data = Examples(torch.eye(3).repeat(1500, 1), torch.tensor([0, 1, 1]).repeat(1500))
        assert accuracy(nn.Identity(), data) == pytest.approx(2 / 3)

    @pytest.mark.parametrize("training", [True, False])
    def test_measures_in_evaluation_mode_and_gives_the_mode_back(self, training):
        seen = []

        class Spy(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                seen.append((self.training, torch.is_grad_enabled()))
                return x

        model = Spy().train(training)
        accuracy(model, Examples(self.logits, torch.tensor([0, 1, 2, 0])))
        assert seen == [(False, False)]
        assert model.training is training


@pytest.mark.parametrize(("iterations", "expected"), [(None, 3), (1, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_num_epochs(iterations, expected):
    assert num_epochs(95, 10, epochs=3, iterations=iterations) == expected
