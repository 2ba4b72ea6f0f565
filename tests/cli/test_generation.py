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
            "mask has no effect with stream digits-generation, which learns to draw.",
        ),
        (["--method", "none", "--alignment", "1"], "alignment has no effect with method none"),
    ],
)
def test_what_has_no_meaning_is_one_line(tmp_path, capsys, typed, message):
    assert main([*TYPED, *typed, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_settings_of_generation_are_not_those_of_other_streams(tmp_path, capsys):
    assert main(["run", "split-digits", "--method", "none", "--alignment", "1", "--output", str(tmp_path)]) == 2
    assert (
        "alignment has no effect with stream split-digits; it belongs to digits-generation, mnist-"
        in capsys.readouterr().err
    )


def test_names_are_listed(capsys):
    assert main(["run", "list"]) == 0
    said = capsys.readouterr().out
    assert "mnist-generation" in said
    assert "mergan-jtr-ra" in said
