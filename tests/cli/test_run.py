from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from holdfast.cli import main
from holdfast.cli.idle import unit_note
from holdfast.lab import configure
from holdfast.lab.methods import METHODS
from holdfast.lab.streams import STREAMS

TINY = ["--num-tasks", "2", "--epochs", "1", "--hidden", "8"]


def tiny(output: Path, method: str = "ewc-fisher", *more: object) -> list[str]:
    return ["run", "permuted-digits", "--method", method, "--output", str(output), *TINY, *map(str, more)]


def only(output: Path) -> Path:
    (folder,) = output.iterdir()
    return folder


def test_a_run_leaves_its_result_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(tiny(tmp_path, "ewc-fisher", "--seed", 3, "--strength", 2)) == 0
    said = capsys.readouterr().out
    config = configure("permuted-digits", "ewc-fisher", seed=3, strength=2.0, num_tasks=2, epochs=1, hidden=(8,))
    folder = only(tmp_path)
    assert folder.name == config.name
    assert json.loads((folder / "result.json").read_text())["config"] == config.to_dict()
    for name in ("accuracy", "matrix"):
        assert (folder / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert str(folder / "plots" / f"{name}.png") in said
    assert "EWC Fisher: task 2/2 learned to" in said
    assert "average accuracy" in said
    assert "forgetting" in said
    assert "EWC: 1 task held" in said
    assert str(folder / "result.json") in said


def test_event_files_for_tensorboard(tmp_path: Path):
    assert main([*tiny(tmp_path, "none"), "--tensorboard"]) == 0
    (file,) = only(tmp_path).glob("events.out.tfevents.*")
    assert file.stat().st_size > 500


def test_without_tensorboard_nothing_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert 'pip install "torch-holdfast[tensorboard]"' in refusal(capsys, [*tiny(tmp_path, "none"), "--tensorboard"])
    assert not list(tmp_path.iterdir())


def test_again_it_redraws_and_does_not_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(tiny(tmp_path, "none"))
    folder = only(tmp_path)
    events = (folder / "metrics.jsonl").read_bytes()
    shutil.rmtree(folder / "plots")
    capsys.readouterr()
    assert main(tiny(tmp_path, "none")) == 0
    said = capsys.readouterr().out
    assert "finished before: read back, not trained again" in said
    assert "learned to" not in said
    assert (folder / "plots" / "matrix.png").is_file()
    assert (folder / "metrics.jsonl").read_bytes() == events


def test_quiet_tells_only_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main([*tiny(tmp_path, "none"), "--quiet"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["results:", "pictures:"]
    assert len(lines) == 3


def test_settings_of_every_kind_arrive(tmp_path: Path):
    more = [
        "--mas-batched",
        "yes",
        "--fresh-optimizer",
        "no",
        "--optimizer",
        "adam",
        "--lr",
        "1e-3",
        "--scenario",
        "domain",
    ]
    assert main(tiny(tmp_path, "ewc-mas", "--hidden", 8, 4, *more)) == 0
    config = json.loads((only(tmp_path) / "config.json").read_text())["config"]
    wanted = {"mas_batched": True, "fresh_optimizer": False, "optimizer": "adam", "lr": 1e-3, "hidden": [8, 4]}
    assert {name: config[name] for name in wanted} == wanted


def test_a_budget_takes_the_place_of_the_strength(tmp_path: Path):
    assert main(tiny(tmp_path, "ewc-fisher", "--budget", 0.05)) == 0
    config = json.loads((only(tmp_path) / "config.json").read_text())["config"]
    assert (config["strength"], config["budget"]) == (None, 0.05)


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        (
            "ewc-si",
            ["--si-variant", "kutalev", "--si-gradient", "before"],
            "--si-gradient has no effect beside --si-variant kutalev, which has its own.",
        ),
        ("none", ["--iterations", "3"], "--epochs has no effect beside --iterations, which is 3."),
    ],
)
def test_an_option_without_effect_is_told(
    method: str, settings: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(tiny(tmp_path, method, *settings)) == 0
    assert f"warning: {said}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("none", ["--strength", "3"], "strength has no effect with .*, net mlp and none; it belongs to ewc-fisher, "),
        ("ewc-mas", ["--fisher", "sampled"], "fisher has no effect with .* and ewc-mas; it belongs to ewc-fisher, "),
        ("ewc-si", ["--attenuation", "hyperbolic"], "attenuation has no effect .* and ewc-si; it belongs to wva-fis"),
        ("wva-fisher", ["--budget", "1"], "budget has no effect with .* and wva-fisher; it belongs to ewc-fisher, "),
        ("none", ["--net", "convolution"], "hidden has no effect with .*, net convolution and none; .* to mlp"),
    ],
)
def test_an_option_of_something_else_is_refused(
    method: str, settings: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    line = refusal(capsys, tiny(tmp_path, method, *settings))
    assert re.match(f"holdfast: run: {said}", line)
    assert not list(tmp_path.iterdir())


def test_no_warning_without_a_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(tiny(tmp_path, "ewc-fisher", "--strength", 3, "--pull", "implicit", "--fisher", "sampled"))
    assert "warning:" not in capsys.readouterr().out


def test_warnings_of_the_library_are_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(tiny(tmp_path, "wva-fisher", "--attenuate", "gradients", "--optimizer", "adam"))
    said = capsys.readouterr().out
    assert 'warning: WVA: on="gradients" is cancelled by the normalisation of Adam' in said
    assert said.count("cancelled") == 1


def test_without_matplotlib_what_was_learned_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(tiny(tmp_path, "none")) == 0
    assert "pictures: none; pictures are drawn with matplotlib, which is not installed" in capsys.readouterr().out
    assert (only(tmp_path) / "result.json").is_file()


def test_list(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in [*STREAMS, *METHODS])


def shown_help(capsys: pytest.CaptureFixture[str], *typed: str) -> str:
    assert main(["run", *typed, "--help"]) == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_help_says_how_to_see_the_options_of_a_method(capsys: pytest.CaptureFixture[str]):
    said = shown_help(capsys)
    assert "Name a stream and a method for their options, as in: holdfast run split-mnist --method ewc-fisher" in said
    assert "--lr" not in said


def test_help_explains_every_setting_of_what_was_chosen(capsys: pytest.CaptureFixture[str]):
    said = shown_help(capsys, "permuted-digits", "--method", "ewc-mas")
    assert "--lr FLOAT learning rate (default: 0.3)" in said
    assert "--optimizer {sgd,momentum,nesterov,adam,adamw}" in said
    assert "--hidden INT ... units of each hidden layer" in said
    assert "--strength FLOAT of the pull, where no budget is kept (default: 0.03)" in said
    assert "--fraction" in said
    assert "None" not in said
    assert not [flag for flag in ("--fisher", "--attenuation", "--buffer-size", "--classes-per-task") if flag in said]


def test_help_of_what_a_method_is_to_draw_by_and_to_hold_by(capsys: pytest.CaptureFixture[str]):
    said = shown_help(capsys, "split-digits", "--method", "dgr", "--generator", "wgan-gp", "--hold", "ewc-si")
    assert "--damping" in said
    assert "--strength" in said
    assert "--generator-lr" in said
    assert "--generator-units" not in said


def test_flags_may_come_before_the_stream(tmp_path: Path):
    flags = ["--quiet", "--lr", "0.1", "--method", "none", *TINY, "--output", str(tmp_path)]
    assert main(["run", *flags[:3], "permuted-digits", *flags[3:]]) == 0
    assert json.loads((only(tmp_path) / "config.json").read_text())["config"]["lr"] == 0.1


def test_data_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=rng.random((90, 3, 4, 4)), y=np.arange(90) % 4)
    data = ["split", "--data", str(tmp_path / "mine.npz"), "--epochs", "1", "--output", str(tmp_path / "runs")]
    assert main(["run", *data, "--method", "ewc-fisher", "--net", "convolution"]) == 0
    assert (only(tmp_path / "runs") / "result.json").exists()
    assert "of which data? Give --data" in refusal(capsys, ["run", "split", "--method", "none"])
    unknown = ["run", "split", "--method", "none", "--data", "min"]
    assert "data 'min': no such file or folder, and no name of data" in refusal(capsys, unknown)


def refusal(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_an_unwritable_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    line = refusal(capsys, tiny(tmp_path / "file", "none"))
    assert line.startswith(f"holdfast: cannot write {tmp_path}/file/permuted-digits-none-0-")
    assert line.endswith("file: that is no folder. Choose a folder that can be written.")


def test_a_folder_of_another_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(tiny(tmp_path, "none"))
    written = only(tmp_path) / "config.json"
    written.write_text(written.read_text().replace('"lr": 0.3', '"lr": 0.7'))
    capsys.readouterr()
    assert "belongs to another configuration: lr 0.7 there, 0.3 here" in refusal(capsys, tiny(tmp_path, "none"))


def test_a_damaged_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(tiny(tmp_path, "none"))
    result = only(tmp_path) / "result.json"
    result.write_text(result.read_text()[:100])
    capsys.readouterr()
    assert "result.json is no valid JSON" in refusal(capsys, tiny(tmp_path, "none"))


def test_a_damaged_data_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mnist").mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / "mnist" / f"{name}-ubyte.gz").write_bytes(b"not gzip")
    argv = [
        "run",
        "permuted-mnist",
        "--method",
        "none",
        "--output",
        str(tmp_path / "runs"),
        "--data-dir",
        str(tmp_path),
    ]
    line = refusal(capsys, argv)
    assert str(tmp_path / "mnist" / "train-images-idx3-ubyte.gz") in line


def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "device 'tpu-9' cannot be used" in refusal(capsys, tiny(tmp_path, "none", "--device", "tpu-9"))


def test_holding_weights_in_the_class_scenario_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    split = ["run", "split-digits", "--output", str(tmp_path), *TINY, "--scenario", "class", "--method"]
    main([*split, "ewc-fisher"])
    said = capsys.readouterr().out
    assert "ewc-fisher hardly helps in the class scenario: a task has no examples of older classes" in said
    main([*split, "joint"])
    assert "hardly helps" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "given", "told"),
    [
        (
            "ewc-mas",
            {"mas_output": "softmax"},
            r"strength 0.03 is the protocol's for mas output logits; with --mas-outp",
        ),
        ("wva-mas", {"mas_batched": True}, "strength 10 is the protocol's for mas batched no; with --mas-batched"),
        (
            "ewc-si",
            {"damping": 1e-3, "si_variant": "kutalev"},
            "damping 0.1 and si variant zenke; with --damping and",
        ),
        ("ewc-fisher", {"fisher": "batched"}, r"strength 100 is the protocol's for fisher exact; with --fisher"),
        ("ewc-fisher", {"fisher": "sampled"}, ""),
        ("ewc-mas", {"mas_output": "logits"}, ""),
        ("ewc-mas", {"mas_output": "softmax", "strength": 10.0}, ""),
        ("ewc-mas", {"mas_output": "softmax", "budget": 0.05}, ""),
        ("none", {}, ""),
    ],
)
def test_a_strength_that_was_chosen_for_another_unit_is_said(method, given, told):
    note = "".join(unit_note(configure("permuted-digits", method, **given), given))
    assert re.search(told, note) if told else note == ""
    assert ("or a --budget" in note) == (bool(told) and method.startswith("ewc"))


def test_a_run_and_a_sweep_say_it(tmp_path, capsys):
    small = ["permuted-digits", "--mas-output", "softmax", "--num-tasks", "2", "--epochs", "1", "--hidden", "8"]
    assert main(["run", *small, "--method", "ewc-mas", "--output", str(tmp_path)]) == 0
    assert "warning: strength 0.03 is the protocol's for mas output logits" in capsys.readouterr().out.replace(
        "\n", " "
    )
    typed = ["sweep", *small, "--methods", "ewc-mas", "--seeds", "0", "--output", str(tmp_path)]
    assert main(typed) == 0
    assert "warning: ewc-mas: strength 0.03 is the protocol's" in capsys.readouterr().out.replace("\n", " ")
    assert main([*typed, "--strengths", "1"]) == 0
    assert "protocol's" not in capsys.readouterr().out
