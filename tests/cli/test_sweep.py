from __future__ import annotations

import json

import pytest

from holdfast.cli import main
from holdfast.cli.console import console_for
from holdfast.cli.options import SweepOptions, option_names
from holdfast.cli.settings import sweep_record
from holdfast.cli.sweep import planned
from holdfast.cli.tables import findings_table
from holdfast.lab.sweep import Space
from holdfast.lab.sweep.findings import Finding, write_findings
from holdfast.lab.sweep.space import SweepChoice

SMALL = ["--num-tasks", "2", "--epochs", "1", "--hidden", "8", "--seeds", "0", "1"]


def test_it_ends_with_the_best_of_each_method_and_where_it_is_written(tmp_path, capsys):
    typed = ["sweep", "permuted-digits", "--methods", "ewc-fisher", "none", "--strengths", "1", "1e3", *SMALL]
    assert main([*typed, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "sweep-permuted-digits.json").read_text())
    assert "EWC Fisher, plain: 2 of EWC Fisher and 1 of plain, over 2 seeds" in printed
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


def test_a_method_whose_every_setting_was_given_up_says_so(tmp_path, capsys):
    space = Space(stream="permuted-digits", methods=("ewc-fisher", "none"), seeds=(0,))
    done = Finding("none", SweepChoice("sgd", 0.1), validation=(0.9,), test=(0.8,), runs=("a",))
    why = "training diverged under seed 0"
    lost = [Finding("ewc-fisher", SweepChoice("sgd", 0.1, strength), "pruned", why) for strength in (1.0, 10.0)]
    found = write_findings([done, *lost], space=space, output=tmp_path)
    console_for().print(findings_table(found))
    printed = " ".join(capsys.readouterr().out.split())
    assert "plain sgd, lr 0.1 90.0 80.0 1" in printed
    assert f"EWC Fisher none, all given up: {why} 2, 2 given up" in printed


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "sweep permuted-digits: which methods? Give --methods, of: joint, cumulative, "),
        (["--methods", "ewc-fischer"], "unknown method 'ewc-fischer'. Did you mean 'ewc-fisher'?"),
        (["--methods", "none", "--lr", "0.1"], "sweep: unknown option --lr. Did you mean --lrs?"),
        (["--methods", "none", "--lrs", "zero"], "sweep: --lrs is 'zero'; expected a number"),
        (["--methods", "none", "--sampler", "grit"], "unknown sampler 'grit'. Did you mean 'grid'? Known: grid, tpe."),
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
    names = option_names(sweep_record(SweepOptions, ["permuted-digits", "--methods", "ewc-fisher", "wva-mas"]))
    assert {"--mas-output", "--fisher", "--attenuation"} <= set(names)
    assert {"--strengths", "--lrs", "--optimizers", "--batch-size", "--pull"} <= set(names)
    assert not {"--strength", "--lr", "--optimizer", "--budget", "--seed", "--method"} & set(names)


@pytest.mark.parametrize("refine", [False, True])
def test_what_it_announces_is_what_it_does(tmp_path, capsys, refine):
    """All of it without --refine; with it that there is more where one stands at the edge, and how it goes on."""
    typed = ["sweep", "permuted-digits", "--methods", "ewc-fisher", "--strengths", "1", "10", *SMALL]
    assert main([*typed, *["--refine"] * refine, "--output", str(tmp_path)]) == 0
    announced = capsys.readouterr().out.replace("\n", " ")
    more = ", and as many more next to the best strength as still gain"
    assert f"2 settings of each method{more * refine}, over 2 seeds" in announced
    tried = json.loads((tmp_path / "sweep-permuted-digits.json").read_text())["all"]
    assert (len(tried) > 2) == refine


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"methods": ("none", "l2"), "refine": True}, "1 setting of each method, and as many more"),
        ({"methods": ("none",), "refine": True}, "1 setting of each method"),
        ({"methods": ("none", "l2"), "lrs": (0.1, 0.2), "strengths": (1.0, 2.0, 3.0)}, "2 of plain and 6 of L2"),
        ({"methods": ("none", "l2"), "sampler": "tpe", "trials": 7}, "7 settings of each method"),
    ],
)
def test_how_many_are_planned(settings, told):
    space = Space(stream="permuted-digits", **settings)
    assert planned(space).startswith(told)
    assert ("more" in planned(space)) == ("more" in told)
