import json
from dataclasses import asdict, replace

import pytest

from holdfast.errors import FileFormatError
from holdfast.experiments.results import RunResult, find_results, find_runs, summarise

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
        ("{}", "missing 1[0-9] required"),
        (json.dumps({**asdict(RESULT), "accuracy_matrix": None}), "is no complete result"),
        (json.dumps({**asdict(RESULT), "average_accuracy": 0.5}), "is no complete result"),
        (json.dumps({**asdict(RESULT), "accuracy_matrix": []}), "accuracy_matrix is not square"),
        (json.dumps({**asdict(RESULT), "accuracy_matrix": MATRIX[:2]}), "accuracy_matrix is not square"),
        (json.dumps({**asdict(RESULT), "average_accuracy": [0.5]}), "not as long as average_accuracy"),
    ],
)
def test_a_damaged_result(tmp_path, text, message):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message) as caught:
        RunResult.load(path)
    assert str(path) in str(caught.value)
    assert "Delete it and run the same command again" in str(caught.value)


def test_a_missing_result(tmp_path):
    with pytest.raises(FileFormatError, match="cannot be read: No such file"):
        RunResult.load(tmp_path / "result.json")


class TestFind:
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
