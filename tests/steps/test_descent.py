import torch
from torch import nn

from holdfast.steps.descent import descend


def test_each_batch_is_one_step_and_what_is_added_is_not_told():
    """Of w x, with w^2 added, under SGD from w = 3: at each batch w falls by (x + 2 w) / 4."""
    w = nn.Parameter(torch.tensor(3.0))
    told: list[object] = []
    losses = descend(
        torch.optim.SGD([w], lr=0.25),
        [1.0, 2.0],
        lambda x: (w * x, w.square()),
        before_step=told.append,
        after_step=lambda x: told.append((x, w.item())),
    )
    assert [float(loss) for loss in losses] == [3.0, 2.5]
    assert told == [0, (1.0, 1.25), 1, (2.0, 0.125)]
    assert not any(loss.requires_grad for loss in losses)


def test_gradients_are_clipped_over_all_groups():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=1.0)
    descend(optimizer, [None], lambda _: ((30 * a + 40 * b).sum(), None), clip=1.0)
    torch.testing.assert_close(torch.cat([a, b]), torch.tensor([-0.6, -0.8]))


def test_without_batches_nothing_happens():
    w = nn.Parameter(torch.ones(1))
    assert descend(torch.optim.SGD([w], lr=1.0), [], lambda _: (w.sum(), None)) == []
    assert w.item() == 1
