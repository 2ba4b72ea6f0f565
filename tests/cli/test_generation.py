import json

import pytest
from tests.lab.generation.small import quick_judge

from holdfast.cli import main

TYPED = [
    *["run", "digits-generation", "--num-tasks", "2", "--iterations", "4", "--batch-size", "8", "--width", "4"],
    *["--latent", "4", "--images", "20", "--critic-steps", "2"],
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick_judge(monkeypatch)


def test_a_run_and_its_pictures(tmp_path, capsys):
    typed = [*TYPED, "--method", "mergan-ra", "--alignment", "0.1", "--output", str(tmp_path), "--tensorboard"]
    assert main(typed) == 0
    said = capsys.readouterr().out
    assert "digits-generation, MeRGAN RA" in said
    assert "drawn as asked, %" in said
    assert "reverse accuracy" in said
    assert "Fréchet distance" in said
    (folder,) = (path for path in tmp_path.iterdir() if path.name != "judges")
    assert {path.name for path in (folder / "plots").iterdir()} == {"tasks.png", "classes.png"}
    (events,) = folder.glob("events.out.tfevents.*")
    assert events.stat().st_size > 500
    (folder / "plots" / "tasks.png").unlink()
    assert main(typed) == 0
    assert "finished before: read back" in capsys.readouterr().out
    assert (folder / "plots" / "tasks.png").exists()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "run digits-generation: which method? Give --method, one of: joint, mergan-jtr-ra,"),
        (["--method", "wva-fisher"], "unknown method of generation 'wva-fisher'."),
        (
            ["--method", "none", "--mask", "all"],
            "mask has no effect with stream digits-generation and none; it belongs to permuted-digits, rotated-",
        ),
        (
            ["--method", "none", "--alignment", "1"],
            "alignment has no effect with stream digits-generation and none; it belongs to mergan-jtr-ra, mergan-ra.",
        ),
    ],
)
def test_what_has_no_meaning_is_one_line(tmp_path, capsys, typed, message):
    assert main([*TYPED, *typed, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_settings_of_generation_are_not_those_of_other_streams(tmp_path, capsys):
    assert main(["run", "split-digits", "--method", "none", "--alignment", "1", "--output", str(tmp_path)]) == 2
    assert (
        "alignment has no effect with stream split-digits, net mlp and none; it belongs to mergan-jtr-ra, mergan-ra."
        in capsys.readouterr().err
    )
    assert main(["run", "split-digits", "--method", "none", "--critic-steps", "1", "--output", str(tmp_path)]) == 2
    assert "net mlp and none; it belongs to digits-generation, mnist-generation, generation." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_shows_what_belongs_to_the_run(capsys):
    assert main(["run", "digits-generation", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--critic-steps" in said
    assert not any(flag in said for flag in ("--alignment", "--strength", "--importance-examples", "--net", "--mask"))
    assert main(["run", "digits-generation", "--method", "mergan-ra", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--alignment FLOAT weight of replay alignment; see" in said
    assert "(default: 0.3)" in said
    assert "--iterations INT of the generator, a task (default: 200)" in said
    assert "--strength" not in said
    assert main(["run", "mnist-generation", "--method", "ewc-fisher", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--strength FLOAT of EWC (default: 1000.0)" in said
    assert "--importance-examples" in said
    assert "--alignment" not in said


MINE = '''
import torch
from dataclasses import dataclass
from typing import Annotated

from holdfast import lab
from holdfast.lab.generation import Drawing, register_generation_method
from holdfast.replay import MemoryReplayGAN


@dataclass(frozen=True, kw_only=True)
class NoisyOptions:
    """Of noise.

    Attributes:
        noise: deviation of what is added to the images.
    """

    noise: Annotated[float, lab.Within(0, 1)] = 0.1


@register_generation_method("noisy", label="Noisy", summary="blurs what it learns", options=NoisyOptions)
class Noisy(Drawing):
    def __init__(self, plan, options):
        super().__init__(MemoryReplayGAN(plan.gan(), retraining=True))
        self.noise = options.noise

    def fit(self, images, classes):
        return super().fit((images + self.noise * torch.randn_like(images)).clamp(0, 1), classes)


register_generation_method("broken", summary="gives nothing")(lambda plan: 3)
'''


def test_a_method_of_ones_own(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine_of_tests.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    typed = ["--plugin", "mine_of_tests", "--output", str(tmp_path / "runs"), "--quiet"]
    assert main([*TYPED, "--method", "noisy", "--noise", "0.2", *typed]) == 0
    (path,) = (tmp_path / "runs").glob("digits-generation-noisy-0-*/config.json")
    told = json.loads(path.read_text())
    assert told["config"]["noise"] == 0.2
    assert list(told["plugins"]) == ["mine_of_tests"]
    capsys.readouterr()
    assert main(["run", "digits-generation", "--method", "noisy", "--plugin", "mine_of_tests", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "deviation of what is added to the images (default: 0.1)" in said
    assert main([*TYPED, "--method", "noisy", "--noise", "2", *typed]) == 2
    assert "noise is 2.0; expected a number from 0 to 1." in capsys.readouterr().err
    assert main([*TYPED, "--method", "none", "--noise", "0.2", *typed]) == 2
    assert "noise has no effect with stream digits-generation and none; it belongs to noisy." in capsys.readouterr().err
    assert main([*TYPED, "--method", "broken", *typed]) == 2
    assert "broken: made a int; expected a subclass of holdfast.lab.generation.Drawing" in capsys.readouterr().err
    (tmp_path / "mine_of_tests.py").write_text(MINE + "\n# edited\n")
    assert main([*TYPED, "--method", "noisy", "--noise", "0.2", *typed]) == 2
    assert "was begun with another version of mine_of_tests" in capsys.readouterr().err


def test_names_are_listed(capsys):
    assert main(["run", "list"]) == 0
    said = capsys.readouterr().out
    assert "mnist-generation" in said
    assert "mergan-jtr-ra" in said
