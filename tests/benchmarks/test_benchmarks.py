import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks import importance
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.tables import machine
from benchmarks.timing import compare

import holdfast as hf
from holdfast.streams.examples import Examples
from holdfast.training import mlp


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_runs_and_keeps_its_table(name, tmp_path, monkeypatch, capsys):
    for module in (BENCHMARKS["step"], BENCHMARKS["importance"]):
        monkeypatch.setattr(module, "NETS", ((6, 5),))
    main([name, "--quick", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (tmp_path / f"{name}.md").read_text() == printed.removesuffix("\n")
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["quick"]
    assert content["machine"] == machine()
    assert len(content["rows"]) > 3
    assert all(row.keys() == content["rows"][0].keys() for row in content["rows"])
    assert printed.count("\n| ") == len(content["rows"]) + 2


def test_they_are_listed(capsys):
    main([])
    printed = capsys.readouterr().out
    for name, module in BENCHMARKS.items():
        assert f"  {name}" in printed
        assert (module.__doc__ or "").splitlines()[0] in printed


def test_an_unknown_one(capsys):
    with pytest.raises(SystemExit):
        main(["lopp"])
    assert "invalid choice: 'lopp'" in capsys.readouterr().err


def test_the_machine_has_no_name_and_no_paths():
    facts = json.dumps(machine())
    assert {"cpu", "cores", "threads", "clock", "torch", "python", "system", "holdfast"} == set(machine())
    assert platform.node() not in facts
    assert str(Path.cwd()) not in facts


def test_ratios_are_taken_within_rounds(monkeypatch):
    """Each round takes twice as long as the one before; the second variant always three times as long as the first."""
    now, calls = 0.0, 0

    def takes(seconds: float) -> Callable[[], None]:
        def call() -> None:
            nonlocal now, calls
            now += seconds * 2 ** (calls // 2)
            calls += 1

        return call

    monkeypatch.setattr("benchmarks.timing.time.process_time", lambda: now)
    found = compare({"one": takes(1.0), "three": takes(3.0)}, rounds=4, warmup=1)
    assert found["one"].seconds == (4 + 8) / 2
    assert found["three"].seconds == 3 * (4 + 8) / 2
    assert found["three"].spread == "3.00 (3.00 to 3.00)"


@pytest.mark.parametrize(("name", "kind"), [("fisher, exact", "exact"), ("fisher, empirical", "empirical")])
def test_one_at_a_time_is_the_same_quantity(name, kind):
    """What is timed against each other measures the same."""
    model = mlp(7, (5,), 3, slope=0.2)
    data = Examples(torch.randn(9, 7), torch.arange(9) % 3)
    sums = importance.one_at_a_time(model, data, *importance.SINGLY[name])
    for total, found in zip(sums, hf.fisher(model, data, kind=kind).values(), strict=True):
        torch.testing.assert_close(total / len(data), found)
