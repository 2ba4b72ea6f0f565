import math

import pytest
import torch
from tests.replay.drawers import class_of, patterns

import holdfast as hf
from holdfast.replay import VAE

SHAPE = (1, 8, 8)


def trained(*, conditional: bool, steps: int = 250) -> VAE:
    vae = VAE(SHAPE, num_classes=3 if conditional else None, hidden=(32,), latent=4, lr=5e-3)
    images, classes = patterns(120, classes=(0, 1, 2))
    optimizers = vae.optimizers()
    for _ in range(steps):
        vae.fit(images, classes, optimizers=optimizers)
    return vae


def test_the_bound_in_closed_form():
    """With all weights zero: pixels of log 2 nats each, and q(z|x) of the biases alone."""
    vae = VAE((1, 2, 2), hidden=(3,), latent=2)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        vae.encoder[-1].bias.copy_(torch.tensor([1.0, -2.0, math.log(4.0), 0.0]))
    kl = 0.5 * ((1 + 4 - 1 - math.log(4.0)) + (4 + 1 - 1 - 0.0))
    expected = torch.full((5,), 4 * math.log(2.0) + kl)
    torch.testing.assert_close(vae.negative_bound(torch.rand(5, 1, 2, 2)), expected)


def test_it_learns_what_it_is_shown():
    images = trained(conditional=False).sample(200)
    assert class_of(images).bincount(minlength=6)[:3].min() > 30
    assert class_of(images).bincount(minlength=6)[3:].sum() < 10


def test_a_conditional_one_draws_the_class_asked_for():
    vae = trained(conditional=True)
    classes = torch.arange(150) % 3
    images = vae.sample(150, classes=classes)
    assert (class_of(images) == classes).float().mean() > 0.95
    assert images[classes == 1].std(0).mean() > 0.02


@pytest.mark.parametrize("conditional", [False, True])
def test_its_decoder_can_be_held(conditional):
    vae = trained(conditional=conditional, steps=5)
    held = vae.holdable_part(300, classes=(0, 2), seed=1)
    assert held.module is vae.decoder
    batches = [batch[0] for batch in held.batches]
    assert [len(batch) for batch in batches] == [128, 128, 44]
    assert all(torch.equal(a, b) for a, b in zip(batches, (batch[0] for batch in held.batches)))
    if conditional:
        told = torch.cat(batches)[:, 4:]
        assert set(told.argmax(1).tolist()) == {0, 2}
    importance = hf.fisher(held.module, held.batches, kind=held.kind, loss=held.loss)
    assert importance.info.num_examples == 300
    # of the last bias, the exact one is p (1 - p)
    p = vae.decoder(torch.cat(batches)).sigmoid()
    torch.testing.assert_close(importance["2.bias"], (p * (1 - p)).mean(0), rtol=0.3, atol=0.02)
