from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.lab.generation.small import killed_at, poison, quick_judge, small, tensors_of

from holdfast.errors import CollapseError, FileFormatError, NotFiniteError, RunMismatchError
from holdfast.files import read_state
from holdfast.lab.folder import RunFolder
from holdfast.lab.generation import GENERATION_METHODS
from holdfast.lab.generation import run as run_module
from holdfast.lab.generation.config import configure_generation
from holdfast.lab.generation.run import run_generation
from holdfast.lab.result import RunResult, find_results


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_judge(monkeypatch)


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint at each report, and a report at each iteration."""
    monkeypatch.setattr(run_module, "CHECKPOINT_SECONDS", 0.0)


class TestRun:
    def test_the_result(self, tmp_path):
        config, told = small(), []
        result = run_generation(config, output=tmp_path, on_event=told.append)
        assert (result.stream, result.method, result.scenario) == ("digits-generation", "mergan-jtr", "class")
        assert [len(row) for row in result.accuracy_matrix] == [2, 2]
        assert len(result.generation["frechet_distance"]) == 2
        assert 0 <= result.generation["reverse_accuracy"] <= 1
        assert result.generation["judge_accuracy"] > 0.1
        assert result.config == config.to_dict()
        assert [event["event"] for event in told] == ["start", *["epoch"] * 6, "task", *["epoch"] * 6, "task", "done"]
        assert {event["unit"] for event in told if event["event"] == "epoch"} == {"iteration"}
        folder = tmp_path / config.name
        assert RunResult.load(folder / "result.json") == result
        assert find_results([tmp_path]) == [result]
        samples, notes = read_state(folder / "samples.safetensors")
        assert samples["samples"].shape == (2, 2, run_module.SHOWN, 1, 8, 8)
        assert notes == {"classes": [0, 1]}
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == told

    def test_a_finished_run_is_read_back(self, tmp_path, monkeypatch):
        first = run_generation(small(), output=tmp_path)
        monkeypatch.delattr(run_module, "build_drawing")
        assert run_generation(small(), output=tmp_path) == first

    @pytest.mark.parametrize("method", [name for name in GENERATION_METHODS if name != "none"])
    def test_every_method_differs_from_fine_tuning_only_after_the_first_class(self, method, tmp_path):
        settings = {"strength": 1e6} if method == "ewc-fisher" else {}
        plain, other = small("none"), small(method, **settings)
        run_generation(plain, output=tmp_path)
        run_generation(other, output=tmp_path)
        first, second = (tensors_of(config, tmp_path)["samples"] for config in (plain, other))
        if method != "dgr":  # its generator knows no classes
            assert torch.equal(first[0], second[0])
        assert not torch.equal(first[1], second[1])

    def test_the_folder_of_another_configuration_is_refused(self, tmp_path):
        config = small()
        run_generation(config, output=tmp_path)
        (tmp_path / config.name).rename(tmp_path / config.changed(iterations=7).name)
        with pytest.raises(RunMismatchError, match="iterations 6 there, 7 here"):
            run_generation(config.changed(iterations=7), output=tmp_path)

    def test_a_damaged_checkpoint(self, tmp_path, monkeypatch):
        always(monkeypatch)
        config = small()
        assert killed_at(4, config, tmp_path)
        other = small(width=6)
        RunFolder(tmp_path / other.name, other).open()
        (tmp_path / other.name / "checkpoint").mkdir()
        path = tmp_path / config.name / "checkpoint" / "state.safetensors"
        path.rename(tmp_path / other.name / "checkpoint" / "state.safetensors")
        with pytest.raises(FileFormatError, match="does not fit this run .*Delete it to start the run again"):
            run_generation(other, output=tmp_path)
        (tmp_path / other.name / "checkpoint" / "state.safetensors").unlink()
        run_generation(other, output=tmp_path)


class TestResume:
    @pytest.mark.parametrize("method", ["mergan-jtr-ra", "ewc-fisher", "dgr", "joint"])
    @pytest.mark.parametrize("number", [5, 12])  # in the midst of the first task and of the second
    def test_killed_in_mid_task_it_ends_with_the_same_bits(self, method, number, tmp_path, monkeypatch):
        always(monkeypatch)
        config = small(method)
        whole = run_generation(config, output=tmp_path / "whole")
        assert killed_at(number, config, tmp_path / "killed")
        torch.manual_seed(99)
        resumed = run_generation(config, output=tmp_path / "killed")
        timeless = {"seconds": 0.0, "seconds_training": 0.0, "seconds_importance": 0.0}
        assert replace(resumed, **timeless) == replace(whole, **timeless)
        first, second = (tensors_of(config, tmp_path / name) for name in ("whole", "killed"))
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
        events = (tmp_path / "killed" / config.name / "metrics.jsonl").read_text().splitlines()
        assert sum(json.loads(line)["event"] == "epoch" for line in events) == 12

    def test_nothing_is_written_twice_or_lost_wherever_it_is_killed(self, tmp_path, monkeypatch):
        always(monkeypatch)
        config = small(iterations=2)
        number = 1
        while killed_at(number, config, tmp_path / str(number)):
            run_generation(config, output=tmp_path / str(number))
            number += 1
        finals = [tensors_of(config, tmp_path / str(n)) for n in range(1, number + 1)]
        assert number == 9
        for each in finals:
            assert all(torch.equal(each[name], finals[0][name]) for name in finals[0])


class TestCollapse:
    """The checkpoint is changed by hand into one from which a collapse, or a divergence, follows."""

    def poisoned(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: float) -> Any:
        always(monkeypatch)
        config = small(lr=0.0)
        assert killed_at(4, config, tmp_path)
        poison(config, tmp_path, name, value)
        return config

    def test_divergence_is_told_and_the_last_checkpoint_kept(self, tmp_path, monkeypatch):
        config = self.poisoned(tmp_path, monkeypatch, "critic.critic.weight", float("nan"))
        path = tmp_path / config.name / "checkpoint" / "state.safetensors"
        before = path.read_bytes()
        with pytest.raises(
            NotFiniteError, match=r"the critic's loss is nan at iteration \d of task 1: the GAN has div"
        ):
            run_generation(config, output=tmp_path)
        assert path.read_bytes() == before

    def test_constant_images_are_told_and_the_last_checkpoint_kept(self, tmp_path, monkeypatch):
        config = self.poisoned(tmp_path, monkeypatch, "generator.convolutions.1", 0.0)
        monkeypatch.setattr(run_module, "_WARM", 0)
        path = tmp_path / config.name / "checkpoint" / "state.safetensors"
        before = path.read_bytes()
        with pytest.raises(
            CollapseError, match=r"digits-generation-.*, task 1: the generator has collapsed: 64 samples"
        ):
            run_generation(config, output=tmp_path)
        assert path.read_bytes() == before

    def test_at_the_end_of_a_task_too(self, tmp_path, monkeypatch):
        config = self.poisoned(tmp_path, monkeypatch, "generator.convolutions.1", 0.0)
        monkeypatch.setattr(run_module, "CHECKPOINT_SECONDS", 1e9)
        with pytest.raises(CollapseError, match="task 1: MeRGAN, classes 0: the generator has collapsed"):
            run_generation(config, output=tmp_path)


def test_half_precision_runs_and_differs(tmp_path):
    configs = [small(precision=precision) for precision in ("float32", "bfloat16")]
    for config in configs:
        run_generation(config, output=tmp_path)
    first, second = (tensors_of(config, tmp_path) for config in configs)
    assert not torch.equal(first["samples"], second["samples"])
    assert all(tensor.dtype == torch.float32 for tensor in second.values() if tensor.is_floating_point())


@pytest.mark.slow
class TestRealDigits:
    """Three classes of real digits: forgetting without replay, none with it."""

    @pytest.fixture(autouse=True)
    def _real(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()

    def accuracies(self, method: str, tmp_path: Any, **settings: Any) -> list[float]:
        config = configure_generation("digits-generation", method, num_tasks=3, iterations=100, images=100, **settings)
        return run_generation(config, output=tmp_path).accuracy_matrix[2][:3]

    def test_fine_tuning_forgets(self, tmp_path):
        accuracies = self.accuracies("none", tmp_path)
        assert accuracies[0] < 0.2
        assert accuracies[1] < 0.2
        assert accuracies[2] > 0.9

    @pytest.mark.parametrize("method", ["mergan-jtr", "mergan-ra", "mergan-jtr-ra", "joint"])
    def test_replay_remembers(self, method, tmp_path):
        accuracies = self.accuracies(method, tmp_path)
        assert sum(accuracies) / 3 > 0.85
        assert min(accuracies) > 0.7
