from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from holdfast.cli import main
from holdfast.errors import OptionError, UnknownNameError
from holdfast.importance import measure
from holdfast.lab import advise as advise_module
from holdfast.lab.advise import Advice, Workload, advise
from holdfast.lab.methods import METHODS, Setting
from holdfast.lab.training import mlp
from holdfast.lab.workloads import workload
from holdfast.likelihoods import Categorical
from holdfast.records import Importance
from holdfast.retention import EWC

NUM = 6 * 50 + 50 + 50 * 4 + 4  # weights and biases of the net below
BYTES = 4 * NUM


def small(**changes: object) -> Workload:
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(8, 6, generator=generator), torch.arange(8) % 4) for _ in range(3)]
    setting = Setting(((0, 1, 2, 3),) * 2, mask="task", scenario="task", input_shape=(6,))
    return Workload("small", **{"model": mlp(6, (50,), 4), "batches": batches, "setting": setting, **changes})


@pytest.fixture(scope="module")
def advice() -> Advice:
    return advise(small(), rounds=1, num_examples=240, options={"buffer_size": 20})


def test_memory_is_that_of_the_tensors(advice):
    assert (advice.num_parameters, advice.weight_bytes, advice.gradient_bytes) == (NUM, BYTES, BYTES)
    assert 2 * BYTES <= advice.optimizer_bytes <= 2 * BYTES + 16  # and Adam's count of steps, four times
    held = {cost.method: cost.held_bytes for cost in advice.costs}
    assert held["none"] == held["frozen"] == 0
    assert held["wva-fisher"] == held["lwf"] == held["sfa"] == BYTES
    assert held["ewc-fisher"] == held["l2"] == held["imm"] == 2 * BYTES
    assert held["er"] == 20 * (6 * 4 + 8)
    assert held["der"] == 20 * (6 * 4 + 8 + 4 * 4)
    assert held["hat"] == 50 * 4


def test_what_half_precision_rounds_away_takes_memory_too():
    halved = [(inputs.bfloat16(), targets) for inputs, targets in small().batches]
    work = small(model=mlp(6, (50,), 4).bfloat16(), batches=halved)
    (cost,) = advise(work, methods=["ewc-fisher"], rounds=1).costs
    assert cost.held_bytes == (4 + 2 + 2) * NUM  # importance in float32, anchors, and what is kept of pulls


def test_every_method_is_measured(advice):
    assert [cost.method for cost in advice.costs] == [name for name in METHODS if name not in ("joint", "cumulative")]
    assert not [cost.lacking for cost in advice.costs if cost.lacking]
    assert all(cost.step_ratio > 0 and cost.peak_bytes is None for cost in advice.costs)
    assert advice.step_seconds > 0
    assert json.loads(json.dumps(asdict(advice)))["costs"][0]["method"] == "dgr-distilled"


def test_time_is_the_clocks(monkeypatch):
    """Every stretch of work takes 3 s: two equal steps, and 24 of 240 examples; l2 does not look at any."""
    monkeypatch.setattr(advise_module, "_seconds", lambda call, device: (call(), 3.0)[1])
    found = advise(small(), methods=["ewc-fisher", "l2"], rounds=2, num_examples=240)
    assert [cost.step_ratio for cost in found.costs] == [1.0, 1.0]
    assert [cost.closing_seconds for cost in found.costs] == [30.0, 3.0]
    assert found.step_seconds == 1.0


def test_the_model_is_left_as_it_is():
    work = small()
    before = {name: value.clone() for name, value in work.model.state_dict().items()}
    told: list[str] = []
    advise(work, methods=["ewc-fisher", "hat"], rounds=1, on_method=told.append)
    assert told == ["ewc-fisher", "hat"]
    assert all(torch.equal(before[name], value) for name, value in work.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in work.model.parameters())


def test_what_cannot_be_had_is_said_with_its_reason():
    found = advise(small(setting=Setting(((0, 1, 2, 3),) * 2)), methods=["hat", "none"], rounds=1)
    assert found.costs[0].lacking.startswith("hat: the scenario is 'domain'")
    assert found.costs[1].lacking == ""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(7, 5), nn.Linear(5, 7)

        def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(tokens))

    tokens = torch.arange(12).reshape(3, 4) % 7
    words = Workload("words", Words(), [{"tokens": tokens, "labels": tokens}] * 2, Setting(((0,),) * 2))
    found = advise(words, methods=["er", "ewc-fisher", "wva-si", "sfa"], rounds=1)
    assert [bool(cost.lacking) for cost in found.costs] == [True, False, False, False]
    assert found.costs[0].lacking == "it needs batches of (inputs, class targets)"


class TestWorkloads:
    def test_a_net_by_name(self):
        work = workload("convolution", stream="split-digits", batch_size=16, num_batches=2)
        assert work.name == "convolution on split-digits"
        assert [len(targets) for _, targets in work.batches] == [16, 16]
        assert (work.classes, work.setting.scenario, work.num_examples) == ((0, 1), "task", 32)

    def test_a_function_of_a_module(self, tmp_path, monkeypatch):
        (tmp_path / "my_nets.py").write_text(
            "import torch\n"
            "def make():\n"
            "    return torch.nn.Linear(3, 5), ((torch.randn(4, 3), torch.arange(4)) for _ in range(9))\n"
            "def none():\n    return torch.nn.Linear(3, 5), []\n"
            "def wrong():\n    return 3\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "my_nets", raising=False)
        before = list(sys.path)
        work = workload("my_nets:make", num_batches=2)
        assert sys.path == before
        assert len(work.batches) == 2
        assert work.setting.task_classes[0] == (0, 1, 2, 3)
        for text, message in (
            ("my_nets:none", r"advise: my_nets:none returned no batches; expected \(model, iterable of batches\)"),
            ("my_nets:wrong", r"advise: my_nets:wrong returned a int; expected \(model, iterable of batches\)"),
            ("my_nets:other", r"advise: 'my_nets:other' cannot be imported: .* Expected module:name."),
            ("no_such_module:make", r"cannot be imported: .*no_such_module"),
            (
                "mpl",
                r"advise: 'mpl' is no model; expected one of mlp, convolution, attention, resnet, vit, module:func",
            ),
        ):
            with pytest.raises(OptionError, match=message):
                workload(text)

    def test_a_folder_without_transformers(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(OptionError, match="is read with transformers, which is not installed. Install it with"):
            workload(str(tmp_path))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["advise", "mlp", "--stream", "permuted-digits", "--hidden", "8", "--batches", "1", "--batch-size", "8"]
    argv += ["--methods", "none", "ewc-fisher", "hat", "--output", str(tmp_path)]
    assert main(argv) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "mlp on permuted-digits, 610 parameters, on cpu" in said
    assert "EWC Fisher" in said
    assert "Without HAT: hat: the scenario is 'domain'" in said
    written = json.loads((tmp_path / "advice" / "mlp-on-permuted-digits.json").read_text())
    assert [cost["method"] for cost in written["costs"]] == ["none", "ewc-fisher", "hat"]
    assert main(["advise", "mlp", "--methods", "nonne"]) == 2
    assert "unknown method 'nonne'. Did you mean 'none'?" in capsys.readouterr().err


@pytest.mark.slow  # transformers alone takes seconds to import
@pytest.mark.filterwarnings("ignore")
def test_a_language_model_in_a_folder(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    config = transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    work = workload(str(tmp_path / "gpt"), batch_size=2, num_batches=2, length=8)
    assert (work.name, work.num_examples) == ("gpt", 4)
    found = advise(work, methods=["ewc-fisher", "wva-fisher", "er"], rounds=1)
    assert [cost.held_bytes for cost in found.costs] == [2 * found.weight_bytes, found.weight_bytes, 0]
    assert found.costs[2].lacking == "it needs batches of (inputs, class targets)"
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="empty is no folder of a causal language model: "):
        workload(str(tmp_path / "empty"))


def test_measure_is_told_by_its_own_choice():
    work = small(model=mlp(6, (50,), 4))
    taken = advise(work, methods=["none"], rounds=1).measure
    assert taken is not None
    found = measure(work.model, work.batches, probes=work.batches, loss=Categorical(classes=(0, 1, 2, 3)))
    assert (taken.choice.form, taken.choice.labels) == ("diagonal", "exact")
    assert isinstance(found, Importance)
    assert "take 10.3 times the weights' memory, more than 8; labels exact, for 4 outputs" in taken.choice.why
    assert taken.held_bytes == 2 * BYTES

    square = small(model=mlp(6, (6,), 4))
    taken = advise(square, methods=["none"], rounds=1).measure
    assert taken is not None
    assert (taken.choice.form, taken.choice.top_k) == ("kronecker", 2)
    keeper = EWC(square.model, strength=1.0).retain(measure(square.model, square.batches, probes=square.batches))
    held = sum(value.nbytes for name, value in keeper.state()[0].items() if not name.startswith("probes/"))
    assert taken.held_bytes == held


def test_measure_is_left_out_where_it_cannot_measure():
    normed = small(model=nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False)))
    assert advise(normed, methods=["none"], rounds=1).measure is None


class TestLosses:
    """Regression and losses of one's own, which have no classes."""

    @pytest.mark.parametrize(
        "loss", ["gaussian", lambda outputs, batch: (outputs - batch[1]).square().sum(1)], ids=["gaussian", "function"]
    )
    def test_what_holds_by_weights_is_measured_by_the_loss_at_hand(self, loss):
        generator = torch.Generator().manual_seed(0)
        batches = [(torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)) for _ in range(2)]
        work = Workload("regression", nn.Linear(3, 2), batches, Setting(((0,),) * 2), loss=loss)
        methods = ["none", "ewc-fisher", "ewc-mas", "ewc-si", "ewc-taylor", "ewc-kfac", "wva-fisher", "imm", "er"]
        found = {cost.method: cost for cost in advise(work, methods=methods, rounds=1).costs}
        assert {name for name, cost in found.items() if cost.lacking} == {"er"}
        assert found["ewc-fisher"].held_bytes == 2 * 4 * 8
        told = advise(work, methods=[], rounds=1).measure
        assert told is not None
        assert told.choice.labels == ("exact" if loss == "gaussian" else "empirical")

    def test_a_function_returns_it_or_it_is_typed(self, tmp_path, monkeypatch):
        (tmp_path / "my_losses.py").write_text(
            "import torch\n"
            "def two():\n    return torch.nn.Linear(3, 1), [(torch.randn(4, 3), 1e9 * torch.randn(4, 1))]\n"
            "def three():\n    return (*two(), 'gaussian')\n"
            "def wrong():\n    return (*two(), 'gausian')\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "my_losses", raising=False)
        assert workload("my_losses:three").loss == "gaussian"
        assert workload("my_losses:two", loss="gaussian").loss == "gaussian"
        assert workload("my_losses:three", loss="bernoulli").loss == "bernoulli"
        with pytest.raises(UnknownNameError, match=r"unknown loss 'gausian'\. Did you mean 'gaussian'"):
            workload("my_losses:wrong")
        with pytest.raises(OptionError, match="advise: --loss gaussian beside mlp, whose loss is that of its classes"):
            workload("mlp", stream="permuted-digits", loss="gaussian")
