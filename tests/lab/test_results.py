import json
import os
from dataclasses import asdict, replace

import pytest

from holdfast.errors import FileFormatError
from holdfast.lab.result import RunResult, find_results, find_runs, summarise

MATRIX = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.5, 0.6, 0.7]]
VALIDATION = [[1.0], [0.5, 1.0], [0.0, 0.5, 1.0]]
RESULT = RunResult(
    stream="permuted-digits",
    scenario="domain",
    method="none",
    seed=3,
    **summarise(MATRIX, VALIDATION, [0.1, 0.1, 0.2]),
    seconds=1.5,
    seconds_training=1.0,
    config={"lr": 0.1},
    versions={"torch": "2"},
    keeper="",
)


def changed(fields: dict) -> str:
    return json.dumps({**asdict(RESULT), **fields})


def nested(depth: int) -> dict:
    return {"a": nested(depth - 1)} if depth else {}


def test_what_follows_from_the_accuracies():
    expected = {
        "accuracy_matrix": MATRIX,
        "baseline_accuracy": [0.1, 0.1, 0.2],
        "average_accuracy": [0.9, 0.75, 0.6],
        "validation_accuracy": [1.0, 0.75, 0.5],
        "forgetting": (0.4 + 0.2) / 2,
        "backward_transfer": -(0.4 + 0.2) / 2,
        "forward_transfer": (0.1 + 0.1) / 2,
        "learning_accuracy": 0.8,
    }
    found = summarise(MATRIX, VALIDATION, [0.1, 0.1, 0.2])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value) if name != "accuracy_matrix" else found[name] == value
    assert RESULT.final_accuracy == pytest.approx(0.6)


def test_there_and_back(tmp_path):
    RESULT.save(tmp_path / "result.json")
    assert RunResult.load(tmp_path / "result.json") == RESULT
    assert list(tmp_path.iterdir()) == [tmp_path / "result.json"]


def test_it_holds_the_fields_that_other_programs_rely_on(tmp_path):
    RESULT.save(tmp_path / "result.json")
    promised = "stream scenario method seed accuracy_matrix baseline_accuracy average_accuracy validation_accuracy"
    content = json.loads((tmp_path / "result.json").read_text())
    assert {*promised.split(), "forgetting", "seconds", "config"} <= content.keys()


def test_a_result_of_a_version_that_counted_no_bytes(tmp_path):
    content = {name: value for name, value in asdict(RESULT).items() if name not in ("held_bytes", "num_parameters")}
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert RunResult.load(tmp_path / "result.json") == RESULT
    assert RESULT.held_bytes is None


def test_a_field_of_a_later_version_is_passed_over(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({**asdict(RESULT), "colour": "green"}))
    assert RunResult.load(tmp_path / "result.json") == RESULT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(asdict(RESULT))[:200], "truncated or edited"),
        ("[]", "holds a JSON list; expected an object"),
        ("{}", "is no complete result: it lacks stream, scenario, method, seed, accuracy_matrix, .*seconds"),
        (changed({"accuracy_matrix": None}), "is no complete result"),
        (changed({"average_accuracy": 0.5}), "is no complete result"),
        (
            changed({"accuracy_matrix": []}),
            "accuracy_matrix has 0 entries, expected 3, as many as",
        ),
        (changed({"accuracy_matrix": MATRIX[:2]}), "accuracy_matrix has 2 entries, expected 3"),
        (changed({"accuracy_matrix": [[0.5], *MATRIX[1:]]}), "is not square: row 0 has 1 entries"),
        (
            changed({"average_accuracy": [0.5]}),
            "accuracy_matrix has 3 entries, expected 1, as many as",
        ),
        (changed({"average_accuracy": []}), "average_accuracy is empty, expected an entry for"),
        (changed({"baseline_accuracy": [0.1]}), "baseline_accuracy has 1 entries, expected 3"),
        (changed({"validation_accuracy": []}), "validation_accuracy has 0 entries, expected 3"),
        (
            changed({"accuracy_matrix": [[0.9, "x", 0.1], *MATRIX[1:]]}),
            r"accuracy_matrix\[0\]\[1\] is 'x', expected a number from 0 to 1",
        ),
        (
            changed({"accuracy_matrix": [[[0.9]], [[]], [{}]]}),
            r"\[0\]\[0\] is \[0.9\], expected a",
        ),
        (changed({"average_accuracy": [0.5, float("nan"), 0.5]}), r"average_accuracy\[1\] is nan"),
        (
            changed({"average_accuracy": [0.5, 1.5, 0.5]}),
            r"average_accuracy\[1\] is 1.5, expected",
        ),
        (changed({"forgetting": "0.1"}), "forgetting is '0.1', expected a number from -1 to 1"),
        (changed({"learning_accuracy": True}), "learning_accuracy is True, expected a number"),
        (changed({"seconds": -1}), "seconds is -1, expected a number from 0 to"),
        (changed({"seconds": float("inf")}), "seconds is inf, expected a number from 0 to"),
        (changed({"seed": 1.5}), "seed is 1.5, expected a whole number from 0 to"),
        (changed({"seed": 10**30}), "seed is 10+, expected a whole number from 0 to"),
        (changed({"stream": 3}), "stream is 3, expected a text"),
        (changed({"method": ["none"]}), r"method is \['none'\], expected a text"),
        (changed({"method": "\ud800"}), r"surrogates not allowed"),
        (changed({"config": [1]}), r"config is \[1\], expected an object"),
        (changed({"config": {"lr": float("nan")}}), r"config\['lr'\] is nan, expected a number"),
        (changed({"config": {"a": [{"b": 10**30}]}}), r"config\['a'\] is 10+, expected a whole"),
        (changed({"config": {"\ud800": 1}}), r"surrogates not allowed"),
        (changed({"config": {"strength": "15"}}), "config: strength is '15', expected a number"),
        (changed({"config": nested(50)}), r"config\['a'\] is nested more than 20 times"),
        (changed({"versions": {"torch": 2}}), r"versions\['torch'\] is 2, expected a text"),
        (changed({"keeper": None}), "keeper is None, expected a text"),
        (changed({"held_bytes": -1}), "held_bytes is -1, expected a whole number from 0"),
        (
            changed({"generation": {"judge_accuracy": 2}}),
            "generation: it lacks frechet_distance, ",
        ),
        (changed({"forgetting": 3, "seed": "", "keeper": 4, "stream": 5}), "; .*; and 1 more"),
    ],
)
def test_a_damaged_result(tmp_path, text, message):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message) as caught:
        RunResult.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert "Delete it and run the same command again" in str(caught.value)


def test_a_missing_result(tmp_path):
    with pytest.raises(FileFormatError, match="cannot be read: No such file"):
        RunResult.load(tmp_path / "result.json")


def test_a_folder_of_its_name(tmp_path):
    (tmp_path / "result.json").mkdir()
    with pytest.raises(FileFormatError, match=r"result\.json is no complete result \(.*[Dd]irectory|folder") as caught:
        find_results([tmp_path])
    assert len(str(caught.value).splitlines()) == 1


def test_whole_numbers_where_fractions_may_be(tmp_path):
    content = {**asdict(RESULT), "accuracy_matrix": [[1, 0, 0], [1, 1, 0], [1, 1, 1]], "seconds": 2}
    (tmp_path / "result.json").write_text(json.dumps(content))
    found = RunResult.load(tmp_path / "result.json")
    assert {type(value) for row in found.accuracy_matrix for value in row} == {float}
    assert type(found.seconds) is float
    assert type(found.seed) is int


class TestFind:
    def test_what_is_neither_a_file_nor_a_folder(self, tmp_path):
        os.mkfifo(tmp_path / "runs")
        with pytest.raises(FileFormatError, match="runs is no folder and no file; expected a folder that holds runs"):
            find_results([tmp_path / "runs"])

    def test_every_finished_run_below_in_order(self, tmp_path):
        for number, (method, seed) in enumerate([("none", 3), ("none", 1), ("ewc-si", 2)]):
            folder = tmp_path / "a" / f"run{number}"
            folder.mkdir(parents=True)
            replace(RESULT, method=method, seed=seed).save(folder / "result.json")
        (tmp_path / "a" / "unfinished").mkdir()
        found = find_results([tmp_path])
        assert [(result.method, result.seed) for result in found] == [("ewc-si", 2), ("none", 1), ("none", 3)]
        assert find_results([tmp_path / "a" / "run1"]) == [replace(RESULT, seed=1)]
        assert len(find_results([tmp_path / "a" / "run1", tmp_path / "a" / "run2"])) == 2

    def test_a_result_by_itself_whatever_its_name(self, tmp_path):
        RESULT.save(tmp_path / "permuted-digits-none-3.json")
        assert find_runs([tmp_path / "permuted-digits-none-3.json"]) == [
            (tmp_path / "permuted-digits-none-3.json", RESULT)
        ]

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(
            FileFormatError, match=r"nowhere: no such folder; expected one that holds runs, such as runs/."
        ):
            find_results([tmp_path / "nowhere"])

    def test_no_finished_run(self, tmp_path):
        with pytest.raises(
            FileFormatError, match=r"no finished run below .*: there is no result.json. Finish one with"
        ):
            find_results([tmp_path])

    def test_a_damaged_one_among_them(self, tmp_path):
        RESULT.save(tmp_path / "result.json")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "result.json").write_text("{")
        with pytest.raises(FileFormatError, match="is no complete result"):
            find_results([tmp_path])
