from __future__ import annotations

import json

import pytest

from holdfast.cli import main
from holdfast.cli.options import SweepOptions, option_names

SMALL = ["--num-tasks", "2", "--epochs", "1", "--hidden", "8", "--seeds", "0", "1"]


def test_it_ends_with_the_best_of_each_method_and_where_it_is_written(tmp_path, capsys):
    typed = ["sweep", "permuted-digits", "--methods", "ewc-fisher", "none", "--strengths", "1", "1e3", *SMALL]
    assert main([*typed, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "sweep-permuted-digits.json").read_text())
    assert "EWC Fisher, plain: up to 2 settings of each, over 2 seeds" in printed
    assert printed.count("\newc-fisher   strength ") == 2
    best = content["best"][0]
    table = printed[printed.index("best on validation data over 2 seeds (%)") :]
    assert f"EWC Fisher  strength {best['strength']:g}, sgd, lr {best['lr']:g}" in table
    assert f"{100 * best['validation']['mean']:.1f} ± {100 * best['validation']['half_width']:.1f}" in table
    assert f"{100 * best['test']['mean']:.1f} ± {100 * best['test']['half_width']:.1f}" in table
    assert f"results:  {tmp_path / 'sweep-permuted-digits.json'}" in printed
    assert content["settings"] == {"num_tasks": 2, "epochs": 1, "hidden": [8]}
    assert main([*typed, "--output", str(tmp_path), "--quiet"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("results:")
    assert json.loads((tmp_path / "sweep-permuted-digits.json").read_text()) == content


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "sweep permuted-digits: which methods? Give --methods, of: joint, cumulative, "),
        (["--methods", "ewc-fischer"], "unknown method 'ewc-fischer'. Did you mean 'ewc-fisher'?"),
        (["--methods", "none", "--lr", "0.1"], "sweep: unknown option --lr. Did you mean --lrs?"),
        (["--methods", "none", "--lrs", "zero"], "sweep: --lrs is 'zero'; expected a number"),
        (["--methods", "none", "--sampler", "grit"], "sweep: sampler is 'grit'; expected grid or tpe."),
        (["--methods", "none", "--sampler", "tpe"], "sweep: trials belong to sampler tpe"),
        (["--methods", "none", "--jobs", "0"], "jobs is 0; expected the number of processes"),
        (["--methods", "none", "--storage", "nowhere"], "storage 'nowhere' cannot be used"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, typed, message):
    assert main(["sweep", "permuted-digits", *typed, "--output", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said


def test_what_it_chooses_itself_is_no_option():
    names = option_names(SweepOptions)
    assert {"--strengths", "--lrs", "--optimizers", "--batch-size", "--pull"} <= set(names)
    assert not {"--strength", "--lr", "--optimizer", "--budget", "--seed", "--method"} & set(names)
