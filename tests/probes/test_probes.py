from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import holdfast as hf
from holdfast.errors import (
    BatchError,
    EmptyDataError,
    FileFormatError,
    NotFiniteError,
    OptionError,
    OutputError,
    StateError,
)
from holdfast.probes import Probes
from holdfast.probes.files import probes_from_state, probes_to_state


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


def batches(sizes: tuple[int, ...] = (5, 4), classes: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(size, 6), torch.randint(classes, (size,))) for size in sizes]


def moved(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def test_the_rise_is_the_mean_divergence_over_targets():
    model, data = net(), batches()
    probes = hf.probes_of(model, data)
    old = copy.deepcopy(model).eval()
    assert probes.rise(model) == pytest.approx(0, abs=1e-6)
    moved(model)
    new = copy.deepcopy(model).eval()
    with torch.no_grad():
        inputs = torch.cat([x for x, _ in data])
        p, q = old(inputs).log_softmax(1), new(inputs).log_softmax(1)
    assert probes.rise(model) == pytest.approx(float(F.kl_div(q, p, log_target=True, reduction="batchmean")), rel=1e-5)
    assert (probes.num_examples, probes.num_targets) == (9, 9)


def test_a_model_that_draws_in_evaluation_draws_the_same():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, inputs):
            return self.linear(inputs + torch.randn_like(inputs))

    model = Noisy()
    probes = hf.probes_of(model, batches())
    torch.randn(7)
    assert probes.rise(model) == 0


def test_they_do_not_print_the_old_data():
    assert repr(hf.probes_of(net(), batches())) == "Probes(categorical, 9 examples, 9 targets)"


def test_the_model_is_left_as_it_was():
    model, data = net().train(), batches()
    model[2].eval()
    probes = hf.probes_of(model, data)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    probes.rise(model)
    assert flags == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert torch.is_grad_enabled()


class Counting(nn.Module):
    """Its buffer changes in evaluation mode too, and it draws."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(inputs) + 0 * torch.rand(3)


def test_so_are_buffers_and_draws_of_a_model_that_changes_them_in_evaluation():
    model = Counting()
    probes = hf.probes_of(model, batches())
    state = torch.get_rng_state()
    probes.rise(model)
    assert model.calls == 0
    assert torch.equal(state, torch.get_rng_state())


def test_autocast_outside_changes_nothing():
    model = net()
    probes = hf.probes_of(model, batches())
    moved(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = probes.rise(model)
    assert inside == probes.rise(model)


def test_the_first_so_many():
    model, data = net(), batches((5, 4))
    assert hf.probes_of(model, data, num_examples=7).num_examples == 7
    assert hf.probes_of(model, data, num_examples=None).num_examples == 9
    with pytest.raises(OptionError, match="num_examples=0"):
        hf.probes_of(model, data, num_examples=0)
    assert hf.probes_of(model, batches((100,) * 6)).num_examples == 512


def test_of_texts_fewer_are_as_good():
    model = nn.Embedding(5, 5)
    texts = [(tokens, tokens) for tokens in torch.randint(5, (20, 32, 41))]
    probes = hf.probes_of(model, texts, loss=hf.Categorical(causal=True))
    assert (probes.num_examples, probes.num_targets) == (128, 128 * 40)
    assert (
        hf.probes_of(model, [(t[:, :11], t[:, :11]) for t, _ in texts], loss=hf.Categorical(causal=True)).num_examples
        == 416
    )
    with pytest.raises(EmptyDataError, match="no example"):
        hf.probes_of(model, [])


def test_the_variance_of_real_numbers_is_that_of_the_residuals():
    model = nn.Linear(6, 2)
    data = [(torch.randn(8, 6), torch.randn(8, 2)), (torch.randn(3, 6), torch.randn(3, 2))]
    with torch.no_grad():
        errors = torch.cat([model(x) - y for x, y in data])
        old = torch.cat([model(x) for x, _ in data])
    probes = hf.probes_of(model, data, loss="gaussian")
    moved(model)
    with torch.no_grad():
        new = torch.cat([model(x) for x, _ in data])
    expected = (new - old).square().sum(1).mean() / (2 * errors.square().mean())
    assert probes.rise(model) == pytest.approx(float(expected), rel=1e-5)
    assert hf.probes_of(model, data, loss=hf.Gaussian(variance=2.0)).loss.variance == 2.0
    exact = [(x, model(x).detach()) for x, _ in data]
    with pytest.raises(OptionError, match="variance of 0"):
        hf.probes_of(model, exact, loss="gaussian")


def test_the_shift_of_a_language_model_is_decided_as_for_an_importance():
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 9)

        def forward(self, input_ids, labels=None):
            return {"logits": self.table(input_ids)}

    ids = torch.randint(9, (4, 7))
    probes = hf.probes_of(Language(), [{"input_ids": ids, "labels": ids}])
    assert probes.loss.causal
    assert probes.num_targets == 4 * 6


def test_nan_and_models_that_take_them_no_more():
    model = net()
    probes = hf.probes_of(model, batches())
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="old skill is nan"):
        probes.rise(model)
    with pytest.raises(StateError, match="does not take them as it did"):
        probes.rise(nn.Linear(5, 3))
    with pytest.raises(StateError, match="does not take them as it did"):
        probes.rise(nn.Linear(6, 2))


LOSSES = {
    "categorical": (hf.Categorical(classes=(0, 2)), lambda: torch.tensor([0, 2, 2, 0])),
    "gaussian": (hf.Gaussian(variance=0.7), lambda: torch.randn(4, 3)),
    "bernoulli": ("bernoulli", lambda: torch.randint(2, (4, 3)).float()),
    "similarity": ("similarity", lambda: torch.zeros(4)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_checkpoint_keeps_them(name):
    loss, targets = LOSSES[name]
    model = net()
    probes = hf.probes_of(model, [(torch.randn(4, 6), targets())], loss=loss)
    tensors, notes = probes_to_state(probes)
    back = probes_from_state(tensors, notes, where="here")
    moved(model)
    assert back.rise(model) == probes.rise(model) > 0
    assert back.loss == probes.loss
    assert back.nbytes == probes.nbytes


@pytest.mark.parametrize("name", LOSSES)
def test_a_folder_keeps_them(name, tmp_path):
    loss, targets = LOSSES[name]
    model = net()
    probes = hf.probes_of(model, [(torch.randn(4, 6), targets()) for _ in range(12)], loss=loss)
    probes.save(tmp_path / "probes")
    back = hf.Probes.load(tmp_path / "probes")
    moved(model)
    assert back.rise(model) == probes.rise(model) > 0
    assert (back.loss, back.num_examples) == (probes.loss, 48)


def test_a_folder_of_something_else_is_refused(tmp_path):
    model, data = net(), batches()
    hf.fisher(model, data).save(tmp_path / "importance")
    with pytest.raises(FileFormatError, match=r"no probes\.safetensors is listed"):
        hf.Probes.load(tmp_path / "importance")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError):
        hf.probes_of(model, data).save(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    hf.probes_of(model, data).save(tmp_path / "probes")
    (tmp_path / "probes" / "probes_config.json").write_text("{}")
    with pytest.raises(FileFormatError):
        hf.Probes.load(tmp_path / "probes")


def test_nested_inputs_come_back_as_they_were():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, first, second, scale=1.0):
            return self.linear(first + second["x"]) * scale

    inputs = (torch.randn(4, 6), {"x": torch.randn(4, 6)}, 2.0)
    model = Two()
    probes = hf.probes_of(model, [(inputs, torch.randint(3, (4,)))])
    back = probes_from_state(*probes_to_state(probes), where="here")
    moved(model)
    assert back.rise(model) == probes.rise(model)
    assert isinstance(back.batches[0].batch[0], tuple)


def test_a_loss_of_ones_own_is_not_kept_and_says_so():
    model, data = net(), batches()

    def loss(outputs, batch):
        return F.cross_entropy(outputs, batch[1], reduction="none")

    probes = hf.probes_of(model, data, loss=loss)
    back = probes_from_state(*probes_to_state(probes), where="here")
    with pytest.raises(StateError, match="Put the function back"):
        back.rise(model)
    moved(model)
    assert back.with_loss(loss).rise(model) == probes.rise(model)


def test_what_no_checkpoint_can_keep():
    probes = hf.probes_of(net(), batches())
    strange = Probes(probes.loss, (replace(probes.batches[0], batch=object()),))
    with pytest.raises(StateError, match="holds a object"):
        probes_to_state(strange)


def test_data_that_use_their_memory_again():
    model, memory = net(), torch.empty(4, 6)

    def data():
        for labels in (torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)):
            yield memory.copy_(torch.randn(4, 6)), labels

    probes = hf.probes_of(model, data())
    assert probes.rise(model) == pytest.approx(0, abs=1e-6)
    assert not torch.equal(*(probe.batch[0] for probe in probes.batches))


class InPlace(nn.Module):
    """Changes its inputs, a buffer's object, and the memory of its last outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(6))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("outputs", torch.zeros(4, 6))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        self.outputs.copy_(inputs.add_(1) + self.shift)
        return self.outputs


def test_models_that_write_into_inputs_and_outputs():
    model = InPlace()
    probes = hf.probes_of(model, [(torch.randn(4, 6), torch.randn(4, 6))], loss=hf.Gaussian())
    assert probes.rise(model) == probes.rise(model) == 0
    with torch.no_grad():
        model.shift += 1
    assert probes.rise(model) == pytest.approx(3)
    assert model.calls == 0


def test_answers_that_are_nan():
    inputs = torch.randn(4, 6)
    inputs[1, 2] = torch.nan
    with pytest.raises(NotFiniteError, match="3 numbers of the model's answers are NaN"):
        hf.probes_of(net(), [(inputs, torch.zeros(4, dtype=torch.long))])


@pytest.mark.parametrize("loss", ["gaussian", "bernoulli"])
def test_shapes_are_not_stretched_to_fit(loss):
    data = [(torch.randn(4, 6), torch.rand(4, 2))]
    probes = hf.probes_of(nn.Linear(6, 2), data, loss=loss)
    with pytest.raises(StateError, match=r"outputs of shape \[4, 1\] with answers of shape \[4, 2\]"):
        probes.rise(nn.Linear(6, 1))


def test_residuals_of_targets_without_the_axis_of_the_outputs():
    with pytest.raises(BatchError, match=r"targets of shape \[4\]"):
        hf.probes_of(nn.Linear(6, 1), [(torch.randn(4, 6), torch.randn(4))], loss="gaussian")


def test_one_batch_in_place_of_many():
    (batch,) = batches((4,))
    for data in (batch, {"inputs": batch[0], "labels": batch[1]}):
        with pytest.raises(BatchError, match="probes_of: data is one batch"):
            hf.probes_of(net(), data)


def test_a_single_last_input_has_no_similarity():
    model = nn.Linear(6, 2)
    probes = hf.probes_of(model, batches((5, 1)), loss="similarity")
    assert probes.num_targets == probes.num_examples == 5
    assert probes.rise(model) == 0
    with pytest.raises(OptionError, match="no target of the loss 'similarity'"):
        hf.probes_of(model, batches((1, 1)), loss="similarity")


def test_want_of_memory_and_of_a_loss_are_said_as_they_are():
    model, data = net(), batches()
    probes = hf.probes_of(model, data, loss=lambda outputs, batch: outputs[:, 0])
    with pytest.raises(StateError, match="^probes: their loss is a function of your own"):
        probes_from_state(*probes_to_state(probes), where="here").rise(model)

    def too_large(*args):
        raise torch.OutOfMemoryError("no memory")

    model.register_forward_pre_hook(too_large)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        probes.rise(model)
