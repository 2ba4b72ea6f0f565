import json
import math
import platform
from pathlib import Path

import pytest
import torch
from benchmarks import __main__ as command
from benchmarks import batchnorm, holding, importance, kfac_memory, rehearsal, resting, rhythm, step
from benchmarks.memory import measurable
from benchmarks.tables import Part, content_of, keep, machine, markdown
from benchmarks.timing import Spread
from benchmarks.workloads import WORKLOADS
from tests.benchmarks.tiny import LANGUAGE, MLP


@pytest.fixture
def _tiny(monkeypatch):
    for workload in (MLP, LANGUAGE):
        monkeypatch.setitem(WORKLOADS, workload.name, workload)
    monkeypatch.setattr(step, "NETS", {"tiny-mlp": 2, "tiny-gpt": 1})
    monkeypatch.setattr(step, "MANY_ON", "tiny-mlp")


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("name", ["importance", "step"])
def test_each_runs_and_keeps_its_table(name, tmp_path, capsys):
    command.main([name, "--quick", "--workloads", "tiny-mlp", "tiny-gpt", "--output", str(tmp_path)])
    printed, page = capsys.readouterr().out, (tmp_path / f"{name}.md").read_text()
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert (
        content["parts"].keys()
        == {
            "importance": {"tiny-mlp", "tiny-gpt"},
            "step": {"tiny-mlp-sgd", "tiny-mlp-adam", "tiny-gpt-sgd", "tiny-gpt-adam", "tasks"},
        }[name]
    )
    for part in content["parts"].values():
        assert part["quick"]
        assert part["machine"] == machine()
        assert all(row.keys() == part["rows"][0].keys() for row in part["rows"])
        assert markdown(part) in printed
        assert markdown(part) in page
        assert "A trial" in markdown(part)


@pytest.mark.filterwarnings("ignore")  # of BackPACK and Opacus
def test_our_estimators_have_times_errors_and_memory():
    rows = {row["what"]: row for row in importance.measured(MLP.trial(), quick=True).rows}
    assert rows["plain forward and backward"]["plain passes"] == Spread(1.0, 1.0, 1.0)
    for name in ("fisher, exact", "fisher, empirical", "mas", "taylor", "one at a time: exact"):
        assert float(rows[name]["error"]) < 1e-5
    for name in ("fisher, exact", "fisher, sampled", "kfac, exact", "signal", "mas, local"):
        assert rows[name]["plain passes"].median > 0
        assert rows[name]["later batches"].median > 0
    assert rows["one at a time: mas"]["ours faster"] > 0
    assert rows["fisher, empirical"]["target"] == 1.2


@pytest.mark.skipif(not measurable(), reason="Linux with the GNU C library alone tells peaks")
def test_what_rehearsal_adds_has_time_and_memory():
    ((row,),) = (part.rows for part in rehearsal.measure(quick=True))
    assert row["time"].median > 0
    assert row["memory"] > 0.5


def test_the_loop_runs():
    (part,) = command.BENCHMARKS["loop"].measure(quick=True)
    assert len(part.rows) > 3
    assert list(command.BENCHMARKS["loop"].measure(quick=True, workloads=["mlp-small"])) == []


def test_holding_runs(monkeypatch):
    for table, names in (
        (holding.FORMS, ["EWC", "WVA, 8-bit importances"]),
        (holding.CHANGES, ["float32", "not held"]),
    ):
        for name in set(table) - set(names):
            monkeypatch.delitem(table, name)
    *_, step_part, changed = holding.measure(quick=True)
    assert [row["form"] for row in step_part.rows] == ["EWC", "WVA, 8-bit importances"]
    assert [row["apart"] == 0 for row in changed.rows] == [True, False]
    assert list(holding.measure(quick=True, workloads=["mlp-small"])) == []


def test_rhythm_runs():
    (part,) = rhythm.measure(quick=True)
    assert [row["every"] for row in part.rows] == ["no keeper", "auto", 1, 4, 16, 32, 64, 128]
    assert part.rows[0]["lessons"] == Spread(1.0, 1.0, 1.0)
    assert min(row["below the best"] for row in part.rows) == 0
    assert list(rhythm.measure(quick=True, workloads=["mlp-small"])) == []


def test_a_rare_pull_is_in_the_time_of_its_steps(monkeypatch):
    monkeypatch.setattr(step, "in_turn", lambda calls, **options: {name: len(c.args[1]) for name, c in calls.items()})
    workload = MLP.trial()
    held = {name: step.HOLDS[name](workload, "adam") for name in ("plain", "EWC, K-FAC", "EWC, K-FAC every 16")}
    assert step.timed(held, workload, 10, quick=True, within=1.0) == {
        "plain": 10,
        "EWC, K-FAC": 10,
        "EWC, K-FAC every 16": 16,
    }


def test_resting_runs():
    metrics, rhythms, clip = resting.measure(quick=True)
    weak, strong = metrics.rows
    for row in (weak, strong):
        assert row["task: exact"] <= row["task: ours"] <= row["task: exact"] + 4
        assert row["theta' still: ours"] <= row["theta' still: majorised"] < row["task: majorised"]
    # the shift is (sqrt h - sqrt u)/(sqrt h + sqrt u)
    shifts = {(row["lr h"], row["every"]): row["every=1"] - row["rests at"] for row in rhythms.rows}
    assert shifts[0.5, 2] == pytest.approx(0.0718, abs=1e-4)
    assert shifts[0.5, 10] == pytest.approx(0.3822, abs=1e-4)
    assert max(shift for (h, every), shift in shifts.items() if h * every <= 0.1) < 0.02
    for row in clip.rows:
        assert row["of the way without"] == pytest.approx(min(1.0, row["clip, of the gradient at rest"]), abs=1e-6)
    assert list(resting.measure(quick=True, workloads=["mlp-small"])) == []


def test_batchnorm_runs(monkeypatch):
    monkeypatch.setattr(batchnorm, "STRENGTHS", (0.0, math.inf))
    (part,) = batchnorm.measure(quick=True)
    free, pinned = part.rows
    assert pinned["old, hold"] == pinned["old, each its own"]  # the weights and the statistics of the old task
    assert float(pinned["old, hold"].split()[0]) > float(free["old, hold"].split()[0])
    assert float(pinned["old, hold"].split()[0]) > float(pinned["old, free"].split()[0])
    assert batchnorm.build("convolutions")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert list(batchnorm.measure(quick=True, workloads=["mlp-small"])) == []


@pytest.mark.skipif(not measurable(), reason="this system does not tell its high-water mark")
def test_memory_of_a_form_is_that_of_its_tensors(monkeypatch):
    """And of nothing else of the model's size, on a model large enough to tell."""
    monkeypatch.setattr(holding, "FORMS", {"WVA, 8-bit importances": holding.FORMS["WVA, 8-bit importances"]})
    sizes = {"vocabulary": 4096, "width": 512, "num_layers": 3, "num_heads": 4, "length": 8}
    (row,) = holding.memory(sizes).rows
    assert row["bytes held"] == pytest.approx(0.251, abs=1e-3)
    assert row["bytes held"] <= row["held"] <= row["in a step"] <= 0.35


def test_they_are_listed(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    printed = capsys.readouterr().out
    for name, module in command.BENCHMARKS.items():
        assert f"  {name}" in printed
        assert (module.__doc__ or "").splitlines()[0] in printed


@pytest.mark.parametrize("arguments", [["lopp"], ["importance", "--workloads", "mlp"]])
def test_an_unknown_one(arguments, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert "invalid choice" in capsys.readouterr().err


def test_all_of_them_is_the_default(monkeypatch):
    asked = []
    for name in command.BENCHMARKS:
        module = type("Module", (), {"__doc__": "x", "measure": lambda name=name, **_: asked.append(name) or []})
        monkeypatch.setitem(command.BENCHMARKS, name, module)
    command.main([])
    command.main(["all"])
    command.main(["step"])
    assert asked == [*2 * list(command.BENCHMARKS), "step"]


def test_the_machine_has_no_name_and_no_paths():
    facts = json.dumps(machine())
    assert {"cpu", "cores", "threads", "clock", "torch", "python", "system", "holdfast"} == set(machine())
    assert platform.node() not in facts
    assert str(Path.cwd()) not in facts


def test_a_part_measured_again_takes_the_place_of_the_old_one(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0), ("a", Spread(3.0, 2.5, 3.5))):
        content = content_of(Part(name, f"Net {name}", ["Noted."], [{"what": "x|y", "ratio": value}]), quick=False)
        keep(tmp_path, "table", about="Things: how long.\n\nMore.", part=name, content=content)
    parts = json.loads((tmp_path / "table.json").read_text())["parts"]
    assert list(parts) == ["a", "b"]
    assert parts["a"]["rows"] == [{"what": "x|y", "ratio": {"median": 3.0, "low": 2.5, "high": 3.5}}]
    page = (tmp_path / "table.md").read_text()
    assert page.startswith("# Things\n\nThings: how long.\n\nMore.\n\n## Net a\n\nNoted.\n\n")
    assert "| x\\|y | 3.00 (2.50 to 3.50) |" in page
    assert "## Net b" in page


def test_a_part_without_rows_says_why():
    content = content_of(Part("a", "Net a", ["Not measured: no package."], []), quick=False)
    assert "Not measured: no package.\n\nMeasured" in markdown(content)


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "encoder"])
def test_workloads_are_the_same_every_time(name):
    workload = WORKLOADS[name].trial()
    (inputs, targets), (again, _) = workload.batches(1)[0], workload.batches(2)[0]
    assert all(torch.equal(one, other) for one, other in zip(inputs, again))
    assert len(targets) == workload.batch_size == 4
    model, twin = workload.model(), workload.model()
    assert not model.training
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), twin.parameters()))
    with torch.no_grad():
        assert model(*inputs).shape[: targets.ndim] == targets.shape


@pytest.mark.skipif(not measurable(), reason="no high-water mark of memory here")
def test_what_kfac_takes_beyond_its_factors_is_at_most_twice_a_plain_pass():
    *_, line = kfac_memory.table(["mlp-small"]).splitlines()
    assert float(line.split("|")[-2]) < 2
