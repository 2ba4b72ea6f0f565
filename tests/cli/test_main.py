"""What holds for every command: help, version, exit status, and one clear line for each mistake."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast import __version__
from holdfast.cli import main
from holdfast.cli.dispatch import BESIDE, COMMANDS, TOGETHER

LONG = "x" * 300
"""No file system takes such a name."""
TINY = ["--num-tasks", "2", "--epochs", "1", "--hidden", "8"]
EWC = ["run", "permuted-digits", "--method", "ewc-fisher"]


def refusal(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What is said of bad input: one line on the standard error, status 2, nothing on the standard output."""
    status = main([str(part) for part in argv])
    said = capsys.readouterr()
    assert status == 2
    assert said.err.startswith("holdfast: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    return said.err


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_names_the_commands(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert all(f"• {name}" in said for name in ("demo", "run", "report"))
    assert "--version" in said


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"holdfast {__version__}\n"


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "holdfast", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"holdfast {__version__}\n"


def test_nobody_reads_on():
    program = [sys.executable, "-m", "holdfast", "--help"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        started.stdout.close()
        assert started.stderr is not None
        assert started.stderr.read() == ""
    assert started.returncode == 1


def test_help_and_mistakes_wait_for_no_matplotlib():
    program = (
        "import sys; from holdfast.cli import main; main(['run', '--help']); main(['run', 'x', '--lr', 'y']); "
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["dmeo"], "unknown command 'dmeo'. Did you mean 'demo'? Known: --help, --version, advise, demo, "),
        (["--vresion"], "unknown option '--vresion'. Did you mean '--version'?"),
        (["run"], "run: STREAM is missing. See holdfast run --help."),
        (
            ["run", "permuted-digit", "--method", "none"],
            "unknown stream 'permuted-digit'. Did you mean 'permuted-digits'?",
        ),
        (
            ["run", "permuted-digits"],
            "run permuted-digits: which method? Give --method, one of: joint, cumulative, ",
        ),
        (
            ["run", "permuted-digits", "--method", "ewc-fischer"],
            "unknown method 'ewc-fischer'. Did you mean 'ewc-fisher'?",
        ),
        (
            [*EWC, "--strenght", "3"],
            "run: unknown option --strenght. Did you mean --strength? See holdfast run --help.",
        ),
        ([*EWC, "--strenght=3"], "run: unknown option --strenght. Did you mean --strength?"),
        (["run", "--strenght=3"], "run: unknown option --strenght. See holdfast run --help."),
        ([*EWC, "--zzz"], "run: unknown option --zzz. See holdfast run --help."),
        ([*EWC, "y"], "run: unexpected 'y'. See holdfast run --help."),
        ([*EWC, "--lr"], "run: Missing value for argument '--lr'."),
        ([*EWC, "--lr", "fast"], "run: --lr is 'fast'; expected a number, such as 0.1 or 1e-3."),
        ([*EWC, "--epochs", "1.5"], "run: --epochs is '1.5'; expected a whole number."),
        (
            ["run", "permuted-digits", "--method", "ewc-mas", "--mas-batched", "perhaps"],
            "run: --mas-batched is 'perhaps'; expected yes or no.",
        ),
        ([*EWC, "--hidden", "300", "wide"], "run: --hidden is 'wide'; expected a whole number."),
        ([*EWC, "--hidden"], "run: --hidden has no value; expected a whole number, one or more."),
        ([*EWC, "--method"], "run: Missing value for argument '--method'."),
        (["run", "--lr", "0.1", "permuted-digit"], "unknown stream 'permuted-digit'."),
        ([*EWC, "--net", "mpl"], "unknown net 'mpl'. Did you mean 'mlp'?"),
        (
            [*EWC, "--plugin", "no_such_plugin"],
            "plugin 'no_such_plugin' cannot be imported: ModuleNotFoundError: No module named",
        ),
        (["demo", "--sede", "1"], "demo: unknown option --sede. Did you mean --seed? See holdfast demo --help."),
        (["demo", "permuted-digits"], "demo: unexpected 'permuted-digits'."),
        (["report"], "report: which runs? Give the folders that hold them, such as holdfast report runs"),
    ],
)
def test_one_line_for_each_mistake(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert refusal(capsys, *argv).startswith(f"holdfast: {said}")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["--optimizer", "adm"], "unknown optimizer 'adm'. Did you mean 'adam'? Known: adam, adamw, momentum"),
        (["--fisher", "exakt"], "unknown fisher 'exakt'. Did you mean 'exact'?"),
        (["--scenario", "tasks"], "unknown scenario 'tasks'. Did you mean 'task'?"),
        (["--pull", "implicite"], "unknown pull 'implicite'. Did you mean 'implicit'?"),
        (["--lr", "-1"], "lr is -1.0; expected a number from 0 to 1e+06."),
        (["--lr", "nan"], "lr is nan; expected a number from 0 to 1e+06."),
        (["--num-tasks", "0"], "num_tasks is 0; expected a whole number from 1 to 1000."),
        (["--hidden", "0"], "hidden is (0,); expected the units of each hidden layer"),
        (["--seed", "-1"], "seed is -1; expected a whole number from 0 to"),
        (["--strength", "-2"], "strength is -2.0; expected a number from 0 to inf."),
        (["--strength", "2", "--budget", "1"], "method 'ewc-fisher' needs a strength or a budget, one of them"),
    ],
)
def test_one_line_for_each_bad_setting(
    settings: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "runs"
    line = refusal(capsys, "run", "permuted-digits", "--method", "ewc-fisher", "--output", output, *settings)
    assert line.startswith(f"holdfast: {said}")
    assert not output.exists()


def test_the_remedy_for_a_mistyped_option_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["run", "permuted-digits", "--method", "ewc-fisher", "--output", str(tmp_path), *TINY]
    assert "Did you mean --strength?" in refusal(capsys, *argv, "--strenght", "3")
    assert main([*argv, "--strength", "3"]) == 0


@pytest.mark.parametrize(
    "argv",
    [
        ["report", LONG],
        ["run", "permuted-digits", "--method", "none", "--output", LONG],
        ["sweep", "permuted-digits", "--methods", "ewc-fisher", "--strengths", "1", "--output", LONG],
        ["evaluate", LONG, "data.csv"],
        ["importance", LONG, "data.csv", "-o", "keep"],
    ],
)
def test_a_path_that_the_system_refuses_is_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"holdfast: x{200}: File name too long. Give another path.\n", error)


def test_without_the_extra_of_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "tyro", None)
    line = refusal(capsys, "demo")
    assert line.endswith('needs tyro, which is not installed: pip install "torch-holdfast[cli]"\n')


def test_without_the_extra_of_the_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert refusal(capsys, "report", tmp_path).endswith('Install it with: pip install "torch-holdfast[plots]"\n')
    assert not list(tmp_path.iterdir())


def test_an_interrupt_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: object, **__: object):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["holdfast.lab.running"].ActiveRun, "finish", interrupted)
    argv = ["run", "permuted-digits", "--method", "none", "--output", str(tmp_path), *TINY]
    assert main(argv) == 130
    assert capsys.readouterr().err == "\nholdfast: interrupted. The same command goes on where it was.\n"
    monkeypatch.undo()
    assert main(argv) == 0


def test_what_is_not_foreseen_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys.modules["holdfast.lab.running"].ActiveRun, "finish", None)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        main(["run", "permuted-digits", "--method", "none", "--output", str(tmp_path), *TINY])


ALONE = {
    "run": ["permuted-digits"],
    "reproduce": ["all"],
    "advise": ["mlp"],
    "demo": [],
    "report": [],
}
"""Commands that are of no use in several processes, with what they need."""


def started_by_torchrun(monkeypatch: pytest.MonkeyPatch, **changed: str) -> None:
    told = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**told, **changed}.items():
        monkeypatch.setenv(name, value)


def test_every_command_is_for_one_process_or_for_several():
    assert sorted([*ALONE, *TOGETHER, *BESIDE]) == sorted(COMMANDS)


@pytest.mark.parametrize("command", sorted(ALONE))
def test_what_several_processes_cannot_do_the_first_refuses(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    started_by_torchrun(monkeypatch)
    assert refusal(capsys, command, *ALONE[command]) == (
        f"holdfast: {command}: 2 processes were started, and each would do the same work and write the same files. "
        f"Start it without torchrun, as holdfast {command} ...; several processes share the work of importance, dream, "
        "finetune, evaluate, and of sweep each takes settings.\n"
    )
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out
    started_by_torchrun(monkeypatch, RANK="1")
    assert main([command, *ALONE[command]]) == 0  # so that torchrun does not end the first before it has told
    assert main(["--help"]) == 0
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_beside_the_first_a_process_says_which_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The first tells at once; torchrun then ends the others, who wait for that."""
    monkeypatch.setattr("holdfast.cli.together.PATIENCE", 0.0)
    started_by_torchrun(monkeypatch)
    told = refusal(capsys, "sweep", "permuted-digits")
    started_by_torchrun(monkeypatch, RANK="1")
    assert refusal(capsys, "sweep", "permuted-digits") == told.replace("holdfast: ", "holdfast: process 1 of 2: ", 1)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"RANK": "", "MASTER_ADDR": ""}, "without RANK, MASTER_ADDR"),
        ({"RANK": "2"}, "with RANK '2' and LOCAL_RANK '0'"),
        ({"LOCAL_RANK": "first"}, "with RANK '0' and LOCAL_RANK 'first'"),
    ],
)
def test_several_processes_that_torchrun_did_not_start(
    changed: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    started_by_torchrun(monkeypatch, **changed)
    assert refusal(capsys, "evaluate", "model", "data") == (
        f"holdfast: WORLD_SIZE is 2 {found}: several processes are started by torchrun --nproc-per-node 2 -m holdfast "
        "..., one without it, with WORLD_SIZE unset.\n"
    )


@pytest.mark.parametrize("size", ["1", "", "many"])
def test_one_process_is_as_ever(
    size: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert "is missing" in refusal(capsys, "evaluate")
    assert main(["run", "permuted-digits", "--method", "none", "--output", str(tmp_path), *TINY]) == 0
