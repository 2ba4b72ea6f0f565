"""Several processes on one command: the files and the table of one, and one line where one of them is gone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import many
from tests.cli import together
from tests.language import tiny

from holdfast.cli import main
from holdfast.curvature.factored import load_importance
from holdfast.language import Dreams

if not torch.distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)


def without_dropout(folder: Path) -> Path:
    """Replicas draw other numbers for dropout than one process does."""
    path = folder / "config.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({name: 0.0 if "drop" in name or "pdrop" in name else v for name, v in found.items()}))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    without_dropout(tiny.causal(folder / "causal"))
    without_dropout(tiny.encoder(folder / "encoder"))
    tiny.pairs(folder / "pairs.csv", count=150)
    tiny.intents(folder / "intents.jsonl", count=41)
    tiny.prose(folder / "prose.txt", lines=1000)
    return folder


def started(folder: Path, count: int = 2, *command: str) -> list[subprocess.Popen[str]]:
    """The commands of a folder, or one, in so many processes."""
    return many.started(count, *(command or (sys.executable, together.__file__, str(folder))))


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, list[str]]]:
    """Status, standard output, and what holdfast says of errors, of each."""
    found = [(*each.communicate(timeout=240), each.returncode) for each in processes]
    return [(status, out, [line for line in err.splitlines() if "holdfast: " in line]) for out, err, status in found]


def typed(*command: object) -> list[str]:
    return [str(word) for word in command]


STEPS = ("--steps", 8, "--batch-size", 7, "--accumulate", 2, "--lr", "1e-3", "--save-every", 5)
SIX = ("--batch-size", 6, "--lr", "1e-3")


def commands(place: Path, output: Path) -> dict[str, list[str]]:
    """By name; of each the output is a folder of that name."""
    causal, encoder, prose = place / "causal", place / "encoder", place / "prose.txt"
    shared = ["--length", 16]
    own = {
        "sampled": ["importance", causal, prose, "--examples", 150, *shared],
        "factors": ["importance", causal, prose, "--kind", "kfac", "--examples", 70, *shared],
        "enough": ["importance", causal, prose, "--tolerance", 0.1, *shared],
        "dreams": ["dream", causal, "--count", 40, *shared],
        "held": ["finetune", causal, prose, "--keep", output / "sampled", "--strength", 1, *STEPS, *shared],
        "intents": ["finetune", encoder, place / "intents.jsonl", "--rehearse", "new", "--share", 0.5, *SIX],
        "pairs": ["finetune", encoder, place / "pairs.csv", "--rehearse", "new", "--batch-size", 67, "--lr", "1e-3"],
    }
    found = {name: typed(*command, "-o", output / name) for name, command in own.items()}
    return found | {"shown": typed("evaluate", causal, prose, *shared, "--batch-size", 7)}


@pytest.fixture(scope="module")
def both(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path, list[str]]:
    """What one process wrote and said, and what two did, in one process group."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    (two / "commands.json").write_text(json.dumps(list(commands(place, two).values())))
    running = started(two)
    found = ended(running)
    assert [status for status, _, _ in found] == [0, 0], found
    with pytest.MonkeyPatch.context() as patched:
        said: list[str] = []
        patched.setattr("rich.console.Console.file", property(lambda _: _Heard(said)), raising=False)
        for command in commands(place, one).values():
            assert main(command) == 0
    return one, "".join(said), two, [out for _, out, _ in found]


class _Heard:
    """A file that is no terminal."""

    encoding = "utf-8"

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def write(self, text: str) -> int:
        self._said.append(text)
        return len(text)

    def flush(self) -> None: ...
    def isatty(self) -> bool:
        return False


def words(said: str, folder: Path) -> list[str]:
    """All but places, seconds, and how far it is, which is told after a long silence."""
    lines = [line for line in said.replace(str(folder), "").splitlines() if not re.search(r": [\d,]+(/[\d,]+)?$", line)]
    return re.sub(r"\b[\d.]+ s\b", "", " ".join(lines)).split()


def test_the_first_shows_what_one_process_does(both):
    one, said, two, (first, second) = both
    assert second == ""
    assert words(first, two) == words(said, one)


@pytest.mark.parametrize("name", ["sampled", "factors", "enough"])
def test_an_importance_is_that_of_one_process(name: str, both):
    one, _, two, _ = both
    expected, found = (load_importance(folder / name) for folder in (one, two))
    assert {**found.info.details, "seconds": 0} == {**expected.info.details, "seconds": 0}
    assert (found.info.num_examples, found.info.num_targets) == (expected.info.num_examples, expected.info.num_targets)
    for first, second in zip((one / name).iterdir(), (two / name).iterdir(), strict=True):
        assert first.name == second.name
    same_weights(two / name, one / name, rtol=1e-5, atol=1e-9)


def test_two_end_at_the_tolerance_where_one_does(both):
    one, _, _, _ = both
    assert load_importance(one / "enough").info.num_examples == 5 * 64  # in the middle of what two measure at once


def test_dreams_are_those_of_one_process(both):
    one, _, two, _ = both
    expected, found = (Dreams.load(folder / "dreams") for folder in (one, two))
    assert found.info == expected.info
    for first, second in zip(found.batches, expected.batches, strict=True):
        assert torch.equal(first["input_ids"], second["input_ids"])


@pytest.mark.parametrize("name", ["held", "intents", "pairs"])
def test_a_fine_tuned_model_is_that_of_one_process(name: str, both):
    """The last batch of "intents" and "pairs" has an example for one of two processes alone."""
    one, _, two, _ = both
    assert sorted(file.name for file in (two / name).iterdir()) == sorted(file.name for file in (one / name).iterdir())
    same_weights(two / name, one / name, rtol=1e-3, atol=2e-5)


GONE = "holdfast: process {} of {}: another of the {} processes is gone. " + (
    "The same command goes on from the last checkpoint."
)


def same_weights(found: Path, expected: Path, *, rtol: float, atol: float) -> None:
    for file in expected.glob("*.safetensors"):
        for key, value in load_file(file).items():
            torch.testing.assert_close(load_file(found / file.name)[key], value, rtol=rtol, atol=atol)


def dying(folder: Path, command: list[str], **when: object) -> None:
    """For processes of which the last kills itself."""
    (folder / "commands.json").write_text(json.dumps([command]))
    (folder / "dies.json").write_text(json.dumps(when))


def test_one_goes_on_where_two_were_of_which_one_was_killed(place: Path, both, tmp_path: Path):
    one, _, _, _ = both
    shutil.copytree(one / "sampled", tmp_path / "sampled")
    command = commands(place, tmp_path)["held"]
    dying(tmp_path, command, work="training", step=6)
    first, second = ended(started(tmp_path))
    assert (first[0], first[2]) == (1, [GONE.format(0, 2, 2)])
    assert second[0] == -signal.SIGKILL
    training = tmp_path / "held" / ".holdfast-training"
    assert (training / "held" / "checkpoint-5" / "holdfast.json").exists()
    assert main(command) == 0
    assert not training.exists()
    same_weights(tmp_path / "held", one / "held", rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_of_what_all_meet_with_the_first_tells(tmp_path: Path):
    command = (sys.executable, "-m", "holdfast", "evaluate", str(tmp_path / "missing"), "data")
    first, second = ended(started(tmp_path, 2, *command))
    assert first[0] == second[0] == 2
    assert len(first[2]) == 1
    assert "is no model" in first[2][0]
    assert "process" not in first[2][0]
    assert second[1:] == ("", [])


@pytest.mark.slow
def test_what_a_model_writes_itself_serves_two_as_one(place: Path, tmp_path: Path):
    """Dreams, made-up lessons, a budget on probes, and an importance of the past, which the first measures."""
    folders = [tmp_path / name for name in ("one", "two")]
    shared = ["--length", 16]
    lists = []
    for folder in folders:
        folder.mkdir()
        own = ["importance", place / "causal", "--self", 64, "--calibrate", "--calibrate-budget", 0.002, *shared]
        auto = ["finetune", place / "causal", place / "prose.txt", "--method", "auto", "--steps", 12, *shared]
        lists.append([typed(*own, "-o", folder / "own"), typed(*auto, "--lr", "1e-3", "-o", folder / "auto")])
    (folders[1] / "commands.json").write_text(json.dumps(lists[1]))
    found = ended(started(folders[1]))
    assert [status for status, _, _ in found] == [0, 0], found
    assert found[1][1] == ""
    assert [main(command) for command in lists[0]] == [0, 0]
    expected, measured = (load_importance(folder / "own") for folder in folders)
    assert measured.info.nats_per_unit == pytest.approx(expected.info.nats_per_unit, rel=1e-2)
    same_weights(folders[1] / "own", folders[0] / "own", rtol=1e-5, atol=1e-9)
    same_weights(folders[1] / "auto", folders[0] / "auto", rtol=1e-2, atol=2e-4)


@pytest.mark.slow
def test_under_torchrun_the_others_end_each_with_one_line(place: Path, both, tmp_path: Path):
    """Three measure, one is killed, and one goes on with what they wrote down."""
    one, _, _, _ = both
    command = commands(place, tmp_path)["sampled"]
    dying(tmp_path, command, work="measuring", step=150, checkpoint_seconds=0)
    program = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3")
    done = subprocess.run(
        [*program, together.__file__, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("holdfast: ")]
    assert done.returncode == 1
    assert sorted(lines) == [GONE.format(n, 3, 3) for n in range(2)]
    assert (tmp_path / "sampled" / ".holdfast-measuring.safetensors").exists()
    assert main(command) == 0
    same_weights(tmp_path / "sampled", one / "sampled", rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_a_process_that_waits_for_one_that_sleeps_ends_in_a_line(place: Path, tmp_path: Path):
    """As torchrun ends it, by SIGTERM, while torch waits and takes no signal."""
    command = commands(place, tmp_path)["sampled"]
    dying(tmp_path, command, work="measuring", step=128, by="SIGSTOP")
    first, second = running = started(tmp_path)
    assert os.waitpid(second.pid, os.WUNTRACED)[1] & 0xFF == 0x7F  # it has stopped
    first.terminate()
    out, err = first.communicate(timeout=60)
    second.kill()
    second.communicate()
    assert first.returncode == 1, (out, err)
    assert [line for line in err.splitlines() if "holdfast" in line] == [GONE.format(0, 2, 2)]
    assert len(running) == 2


@pytest.mark.slow
def test_processes_of_different_commands_disagree(place: Path, tmp_path: Path):
    typed_alike = (sys.executable, "-m", "holdfast", "evaluate", str(place / "causal"), str(place / "prose.txt"))
    first, second = ended(started(tmp_path, 2, "sh", "-c", f"exec {' '.join(typed_alike)} --batch-size $((7 + RANK))"))
    told = "holdfast: evaluate: the processes disagree: process 1 of 2 has another command than the first. Start all of"
    assert first[2] == [f"{told} them with one command, on the same files."]
    assert second[1:] == ("", [])
    assert first[0] == second[0] == 2


@pytest.mark.slow
def test_a_sweep_is_done_by_two_of_which_one_is_killed(tmp_path: Path):
    command = typed("sweep", "permuted-digits", "--methods", "ewc-fisher", "--strengths", 1, 10, 100, "--seeds", 0)
    command += typed("--num-tasks", 2, "--epochs", 3, "--hidden", 8, "--output", tmp_path / "out")
    running = started(tmp_path, 2, sys.executable, "-m", "holdfast", *command)
    while not list((tmp_path / "out").rglob("metrics.jsonl")):  # both are at work, or about to be
        time.sleep(0.05)
    running[1].send_signal(signal.SIGKILL)
    found = ended(running)
    assert (found[0][0], found[1][0]) == (0, -signal.SIGKILL), found
    assert "results:" in found[0][1]
    assert found[1][1] == ""
    assert len(list((tmp_path / "out").rglob("result.json"))) == 3
