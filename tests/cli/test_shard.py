"""`--shard`: two processes that have half of the weights each measure what one does."""

import json

import pytest
import torch
from tests.cli.test_together import ended, place, started, typed, without_dropout

from holdfast.cli import main
from holdfast.curvature.factored import load_importance

__all__ = ["place", "without_dropout"]

if not torch.distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)

COMMANDS = {
    "sampled": ["causal", "prose.txt", "--examples", 150, "--length", 16],
    "a part of one example": ["causal", "prose.txt", "--kind", "mas", "--examples", 65, "--length", 16],
    "signal": ["causal", "prose.txt", "--kind", "signal", "--examples", 20, "--length", 16],
    "enough": ["causal", "prose.txt", "--tolerance", 0.1, "--length", 16],
    "pairs": ["encoder", "pairs.csv", "--kind", "exact", "--examples", 40],
}


@pytest.mark.slow
def test_two_halves_of_a_model_measure_what_the_whole_does(place, tmp_path):  # the fixture
    def command(name, output):
        model, data, *options = COMMANDS[name]
        return typed("importance", place / model, place / data, *options, "-o", output / name)

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "commands.json").write_text(
        json.dumps([[*command(name, tmp_path / "two"), "--shard"] for name in COMMANDS])
    )
    found = ended(started(tmp_path))
    assert [status for status, _, _ in found] == [0, 0], found
    for name in COMMANDS:
        assert main(command(name, tmp_path / "one")) == 0
        first, second = (load_importance(tmp_path / place_ / name) for place_ in ("one", "two"))
        assert second.info.num_examples == first.info.num_examples
        assert second.info.num_targets == first.info.num_targets
        assert second.info.model == first.info.model
        assert second.diagonal.keys() == first.diagonal.keys()
        for parameter, value in first.diagonal.items():
            torch.testing.assert_close(second.diagonal[parameter], value, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "--shard spreads a model over several processes, and there is one"),
        (["--kind", "kfac"], "--shard beside --kind kfac, which needs whole weights"),
        (["--calibrate"], "--shard beside --calibrate, which needs whole weights"),
    ],
)
def test_where_shards_are_of_no_use(given, told, tmp_path, capsys):
    assert main(["importance", "model", "data", "--shard", "-o", str(tmp_path / "out"), *given]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
