from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from holdfast.errors import BatchError, DataFileError, OptionError
from holdfast.experiments.language.rows import Columns, Row, read_rows


def rows(path: Path, **options: Any) -> list[Row]:
    return list(read_rows(str(path), **options))


def test_a_text_is_read_line_by_line_and_ends_with_its_file(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.py").write_text("x = 1")
    found = rows(tmp_path)
    assert [row.texts[0] for row in found] == ["one\n", "two\n", "", "x = 1", ""]
    assert [row.ends for row in found] == [False, False, True, False, True]


def test_tables_are_read_by_the_usual_names(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "label": "x", "id": 3}\n\n{"text": "two", "label": "7"}\n')
    assert rows(tmp_path / "a.jsonl") == [Row(("one",), "x"), Row(("two",), 7)]
    (tmp_path / "a.csv").write_text('sentence1,sentence2,score\n"a, b",c,2.5\n')
    assert rows(tmp_path / "a.csv") == [Row(("a, b", "c"), 2.5)]
    parquet.write_table(pa.table({"content": ["one", "two"], "intent": [0, 1]}), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [Row(("one",), 0), Row(("two",), 1)]


def test_a_table_without_names_is_told_by_its_form(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("a,b,5.0\n")
    assert rows(path) == [Row(("a", "b"), 5.0)]
    path.write_text("a,x\n")
    assert rows(path) == [Row(("a",), "x")]
    path.write_text("a,b,c,4\n")
    assert rows(path, columns=Columns(("1",), "3")) == [Row(("b",), 4)]


def test_columns_are_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "one", "a": "two", "kind": "x"}\n')
    assert rows(path, columns=Columns(("q", "a"), "kind")) == [Row(("one", "two"), "x")]
    with pytest.raises(OptionError, match="which column is the text\\? Found 'q', 'a', 'kind'. Name it with --text"):
        rows(path)
    with pytest.raises(OptionError, match="no column 'answer'; found 'q', 'a', 'kind'"):
        rows(path, columns=Columns(("answer",)))


def test_intents_stand_in_two_files(tmp_path: Path):
    (tmp_path / "seq.in").write_text("one\ntwo\n")
    with pytest.raises(DataFileError, match="label is missing beside seq.in"):
        rows(tmp_path)
    (tmp_path / "label").write_text("x\n")
    with pytest.raises(DataFileError, match="seq.in has 2 lines and label 1; expected as many"):
        rows(tmp_path)
    (tmp_path / "label").write_text("x\ny\n")
    assert rows(tmp_path) == [Row(("one",), "x"), Row(("two",), "y")]


def test_a_name_is_one_of_the_datasets_library(monkeypatch: pytest.MonkeyPatch):
    asked = []
    library = ModuleType("datasets")

    def load_dataset(name: str, configuration: str | None, *, split: str, streaming: bool) -> list[dict[str, Any]]:
        asked.append((name, configuration, split, streaming))
        if name == "nobody/nothing":
            raise FileNotFoundError("no such data set\non the hub")
        return [{"text": "one", "label": 1}]

    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert list(read_rows("someone/something:small", split="test")) == [Row(("one",), 1)]
    assert asked == [("someone/something", "small", "test", True)]
    with pytest.raises(DataFileError, match="nothing: neither a file or folder nor a data set .* no such data set on"):
        read_rows("nobody/nothing")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataFileError, match="is not installed. Give a file, or: pip install datasets"):
        read_rows("someone/something")


def test_damaged_data_are_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "tw')
    with pytest.raises(DataFileError, match="a.jsonl, line 2 is no JSON .*: truncated or edited"):
        rows(path)
    path.write_text("[1]\n")
    with pytest.raises(DataFileError, match="line 1 is a JSON list; expected an object"):
        rows(path)
    path.write_text('{"text": 3}\n')
    with pytest.raises(BatchError, match="'text' is 3; expected a text"):
        rows(path)
    table = tmp_path / "a.csv"
    table.write_text("text,label\none\n")
    with pytest.raises(DataFileError, match="row 1 has 1 cells; expected 2"):
        rows(table)
    whole = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["one"] * 100}), whole)
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(DataFileError, match="a.parquet is no whole Parquet file .* Copy it again"):
        rows(whole)
    text = tmp_path / "a.txt"
    text.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataFileError, match="a.txt is no text in UTF-8"):
        rows(text)


def test_what_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(DataFileError, match="no such file or folder. Give a file"):
        rows(tmp_path / "nothing.csv")
    with pytest.raises(DataFileError, match="no file to read in it; expected some of .txt"):
        rows(tmp_path)
