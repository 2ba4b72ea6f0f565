from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from holdfast.errors import BatchError, DataFileError, EmptyDataError, HoldfastError, OptionError
from holdfast.files import new_folder
from holdfast.language.rows import DECLINED, Columns, Row, read_rows

ONE, TWO = Row(("one", "a")[:1], "x"), Row(("two",), "y")
BOTH = [ONE, TWO]
CLASSES = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
Content = str | bytes | Callable[[Path], object]


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


def rows(path: Path, **options: Any) -> list[Row]:
    return list(read_rows(str(path), **options))


def written(folder: Path, name: str, content: Content) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def stored(content: dict[str, list[Any]], features: Any = None) -> datasets.Dataset:
    return datasets.Dataset.from_dict(content, features=features)


def as_parquet(content: dict[str, list[Any]]) -> Callable[[Path], object]:
    return lambda path: parquet.write_table(pa.table(content), path)


def as_arrow(path: Path, *, new: Any) -> None:
    table = pa.table({"text": ["one", "two"], "label": ["x", "y"]})
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table)


def zstd(content: str) -> bytes:
    return pa.compress(content.encode(), codec="zstd", asbytes=True)


CSV = "text,label\none,x\ntwo,y\n"
LINES = '{"text": "one", "label": "x"}\n{"text": "two", "label": "y"}\n'
LABELLED = {"text": ["one", "two"], "label": [0, 1]}
LONG = "how do i send some money,money\nwhere is my new card,card\n"
LONG_ROWS = [Row(("how do i send some money",), "money"), Row(("where is my new card",), "card")]

READ: dict[str, tuple[str, Content, list[Row]]] = {
    "lines": ("a.jsonl", LINES, BOTH),
    "lines of another name": ("a.ndjson", LINES, BOTH),
    "lines in .json": ("a.json", LINES, BOTH),
    "one line in .json": ("a.json", LINES.splitlines()[0], [ONE]),
    "an array": ("a.json", f"[{','.join(LINES.splitlines())}]", BOTH),
    "an array over lines": ("a.json", json.dumps([json.loads(line) for line in LINES.splitlines()], indent=2), BOTH),
    "an object of columns": ("a.json", json.dumps({"text": ["one", "two"], "label": ["x", "y"]}, indent=1), BOTH),
    "an object with data": (
        "a.json",
        json.dumps({"version": 1, "data": list(map(json.loads, LINES.splitlines()))}),
        BOTH,
    ),
    "an object of splits": ("a.json", '{"test": [{"text": "no"}], "train": [{"text": "one", "label": "x"}]}', [ONE]),
    "a suffix in capitals": ("a.JSONL", LINES, BOTH),
    "blank lines": ("a.jsonl", f"\n{LINES}\n  \n", BOTH),
    "line ends of Windows": ("a.jsonl", LINES.replace("\n", "\r\n"), BOTH),
    "a mark before UTF-8": ("a.jsonl", LINES.encode("utf-8-sig"), BOTH),
    "UTF-16": ("a.jsonl", LINES.encode("utf-16"), BOTH),
    "UTF-16 of a table": ("a.csv", CSV.encode("utf-16"), BOTH),
    "UTF-16 of an array": ("a.json", '[{"text": "one", "label": "x"}]'.encode("utf-16"), [ONE]),
    "gz of lines": ("a.jsonl.gz", gzip.compress(LINES.encode()), BOTH),
    "bz2 of lines": ("a.jsonl.bz2", bz2.compress(LINES.encode()), BOTH),
    "xz of an array": ("a.json.xz", lzma.compress(b'[{"text": "one", "label": "x"}]'), [ONE]),
    "zst of a table": ("a.csv.zst", zstd(CSV), BOTH),
    "gz of tabs": ("a.tsv.gz", gzip.compress(CSV.replace(",", "\t").encode()), BOTH),
    "gz of text": ("a.txt.gz", gzip.compress(b"one\n"), [Row(("one\n",), ends=False), Row(("",))]),
    "a date is text": (
        "a.jsonl",
        '{"text": "2020-01-01", "label": "2020-01-02"}',
        [Row(("2020-01-01",), "2020-01-02")],
    ),
    "other line ends in a text": ("a.jsonl", '{"text": "a\\nb\u2028c"}', [Row(("a\nb\u2028c",))]),
    "names in capitals": ("a.jsonl", '{"TEXT": "one", "Label": "x"}', [ONE]),
    "commas": ("a.csv", CSV, BOTH),
    "semicolons": ("a.csv", CSV.replace(",", ";"), BOTH),
    "semicolons, and commas in the texts": ("a.csv", "text;label\nyes, one;x\n", [Row(("yes, one",), "x")]),
    "tabs in .csv": ("a.csv", CSV.replace(",", "\t"), BOTH),
    "tabs": ("a.tsv", CSV.replace(",", "\t"), BOTH),
    "tabs, and single quotation marks": ("a.tsv", 'text\tlabel\n"one\tx\n', [Row(('"one',), "x")]),
    "tabs between quotation marks": (
        "a.tsv",
        'text\tlabel\n"a\tb"\tx\n"c\nd"\ty\n',
        [Row(("a\tb",), "x"), Row(("c\nd",), "y")],
    ),
    "quotation marks that may mean nothing": (
        "a.tsv",
        'text\tlabel\n"a\tx\nb c"\ty\nd"e\tz\n"\tz\n',
        [Row(('"a',), "x"), Row(('b c"',), "y"), Row(('d"e',), "z"), Row(('"',), "z")],
    ),
    "quotation marks among tabs": ("a.tsv", 'text\tlabel\n"say ""one"""\tx\n', [Row(('say "one"',), "x")]),
    "a header in capitals": ("a.csv", "Text,Label\none,x\ntwo,y\n", BOTH),
    "spaces in a header": ("a.csv", "text, label\none, x\ntwo, y\n", BOTH),
    "a table with a mark": ("a.csv", CSV.encode("utf-8-sig"), BOTH),
    "a table of Windows": ("a.csv", CSV.replace("\n", "\r\n"), BOTH),
    "blank rows": ("a.csv", "text,label\n\none,x\n\ntwo,y\n\n", BOTH),
    "quoted line ends": ("a.csv", 'text,label\n"one\n\ntwo",x\n', [Row(("one\n\ntwo",), "x")]),
    "an index of pandas": ("a.csv", ",text,label\n0,one,x\n1,two,y\n", BOTH),
    "one column": ("a.csv", "text\none\ntwo\n", [Row(("one",)), Row(("two",))]),
    "similarities without a header": ("a.csv", "a,b,5.0\nc,d,1\n", [Row(("a", "b"), "5.0"), Row(("c", "d"), "1")]),
    "numbers are text in a table": ("a.csv", "text,label\none,0\ntwo,1\n", [Row(("one",), "0"), Row(("two",), "1")]),
    "numbers with zeros before": ("a.csv", "text,label\none,00\ntwo,01\n", [Row(("one",), "00"), Row(("two",), "01")]),
    "True and False": ("a.csv", "text,label\none,True\ntwo,False\n", [Row(("one",), "True"), Row(("two",), "False")]),
    "NA is a text": ("a.csv", "text,label\nNA,null\nNone,nan\n", [Row(("NA",), "null"), Row(("None",), "nan")]),
    "numbers as texts": ("a.csv", "text,label\n12,x\n007,y\n", [Row(("12",), "x"), Row(("007",), "y")]),
    "true and false": ("a.jsonl", '{"text": "one", "label": true}', [Row(("one",), "True")]),
    "texts that look like numbers": ("a.jsonl", '{"text": "one", "label": "01"}', [Row(("one",), "01")]),
    "a number": ("a.jsonl", '{"sentence1": "a", "sentence2": "b", "score": 2.5}', [Row(("a", "b"), 2.5)]),
    "empty labels": ("a.csv", "text,label\none,\ntwo,y\n", [Row(("one",)), TWO]),
    "null labels": ("a.jsonl", '{"text": "one", "label": null}\n{"text": "two", "label": "y"}', [Row(("one",)), TWO]),
    "no labels among numbers": (
        "a.parquet",
        as_parquet({"text": ["one", "two"], "label": [float("nan"), 1.0]}),
        [Row(("one",)), Row(("two",), 1.0)],
    ),
    "inference": (
        "a.jsonl",
        '{"premise": "a", "hypothesis": "b", "label": 2}\n{"premise": "a", "hypothesis": "b", "label": -1}\n',
        [Row(("a", "b"), "2"), Row(("a", "b"))],
    ),
    "inference in a table": (
        "a.tsv",
        "premise\thypothesis\tlabel\na\tb\tneutral\na\tb\t-\n",
        [Row(("a", "b"), "neutral"), Row(("a", "b"))],
    ),
    "minus one is a class": ("a.csv", "text,label\none,-1\ntwo,1\n", [Row(("one",), "-1"), Row(("two",), "1")]),
    "Parquet": (
        "a.parquet",
        as_parquet({"content": ["one", "two"], "intent": [0, 1]}),
        [Row(("one",), 0), Row(("two",), 1)],
    ),
    "Parquet with names of classes": ("a.parquet", lambda path: stored(LABELLED, CLASSES).to_parquet(path), BOTH),
    "Parquet with categories": (
        "a.parquet",
        lambda path: parquet.write_table(
            pa.table({"text": ["one", "two"], "label": pa.array(["x", "y"]).dictionary_encode()}), path
        ),
        BOTH,
    ),
    "an Arrow file": ("a.arrow", lambda path: as_arrow(path, new=pa.ipc.new_file), BOTH),
    "an Arrow stream": ("a.arrow", lambda path: as_arrow(path, new=pa.ipc.new_stream), BOTH),
    "saved by datasets": ("saved", lambda path: stored(LABELLED, CLASSES).save_to_disk(path), BOTH),
    "splits saved by datasets": (
        "saved",
        lambda path: datasets.DatasetDict(
            train=stored(LABELLED, CLASSES), test=stored({"text": ["no"], "label": [0]}, CLASSES)
        ).save_to_disk(path),
        BOTH,
    ),
    "classes that are secret": (
        "a.parquet",
        lambda path: stored({"text": ["one", "two"], "label": [-1, 1]}, CLASSES).to_parquet(path),
        [Row(("one",)), TWO],
    ),
    "any other text": ("a.log", "one\n", [Row(("one\n",), ends=False), Row(("",))]),
    "a name without an ending": ("text", "one", [Row(("one",), ends=False), Row(("",))]),
    "text of Windows": (
        "a.txt",
        b"\xef\xbb\xbfone\r\ntwo",
        [Row(("one\n",), ends=False), Row(("two",), ends=False), Row(("",))],
    ),
    "an array after spaces": ("a.json", ' \n[ {"text": "one", "label": "x"} ]\n', [ONE]),
}


@pytest.mark.parametrize("name", READ)
def test_every_form_is_read_right(name: str, tmp_path: Path):
    file, content, expected = READ[name]
    found = rows(written(tmp_path, file, content))
    assert found == expected
    assert [type(row.label) for row in found] == [type(row.label) for row in expected]


CHAT = "chat data .* are not read yet. Write each conversation as one text, a row .*text"
REFUSED: dict[str, tuple[str, Content, type[HoldfastError], str]] = {
    "nothing": ("a.jsonl", "", EmptyDataError, "a.jsonl: no row in it .JSON Lines.. Give data that have some"),
    "nothing in a text": ("a.txt", "\n\n", EmptyDataError, "a.txt: no row in it .text."),
    "nothing in an array": ("a.json", "[]", EmptyDataError, "a.json: no row in it .JSON array."),
    "nothing in .json": ("a.json", "\n", EmptyDataError, "a.json: no row in it"),
    "nothing in a table": ("a.csv", "", EmptyDataError, "a.csv: no row in it .CSV."),
    "a header alone": ("a.csv", "text,label\n", EmptyDataError, "a.csv: no row in it .CSV, with a header."),
    "nothing in Parquet": (
        "a.parquet",
        as_parquet({"text": pa.array([], pa.string())}),
        EmptyDataError,
        "no row in it",
    ),
    "a cut line": (
        "a.jsonl",
        '{"text": "one"}\n{"text": "tw',
        DataFileError,
        "line 2 is no JSON .*: truncated or edited",
    ),
    "a list on a line": ("a.jsonl", "[1]\n", DataFileError, "line 1 is a JSON list; expected an object, such as"),
    "nested lines": ("a.jsonl", '{"a":' * 100_000, DataFileError, "line 1 is no JSON .maximum recursion depth"),
    "a nested array": ("a.json", "[" * 100_000, DataFileError, "entry 1 is no JSON .maximum recursion depth"),
    "a cut array": ("a.json", '[{"text": "one"}, {"te', DataFileError, "entry 2 is no JSON .*: truncated or edited"),
    "an array without end": ("a.json", '[{"text": "one"}', DataFileError, "entry 2 is no JSON .*: truncated or edited"),
    "more after an array": ("a.json", '[{"text": "a"}]\n[]', DataFileError, "more text follows the end of the array"),
    "an array of texts": ("a.json", '["a"]', DataFileError, "entry 1 is a JSON str; expected an object"),
    "columns of different length": (
        "a.json",
        '{"text": ["a", "b"], "label": [1]}',
        DataFileError,
        "'text': 2, 'label': 1",
    ),
    "a null text": (
        "a.jsonl",
        '{"text": "a"}\n{"text": null}',
        BatchError,
        "line 2: 'text' is None; expected a text. Del",
    ),
    "a text left out": ("a.jsonl", '{"text": "a"}\n{"label": 1}', OptionError, "line 2: which column is the text"),
    "a number for a text": (
        "a.jsonl",
        '{"text": 3}',
        BatchError,
        "line 1: 'text' is 3; expected a text. Delete the row",
    ),
    "several labels": (
        "a.jsonl",
        '{"text": "a", "labels": ["x"]}',
        BatchError,
        "Several labels an example are not read",
    ),
    "an object as a label": ("a.jsonl", '{"text": "a", "label": {}}', BatchError, "'label' is {}; expected one label"),
    "a label of bytes": (
        "a.parquet",
        as_parquet({"text": ["a"], "label": [b"x"]}),
        BatchError,
        "expected one label, a text or a number",
    ),
    "two texts": (
        "a.csv",
        "text,content\na,b\n",
        OptionError,
        "which column is the text, 'text' or 'content'. Found 'text'",
    ),
    "no usual name": (
        "a.jsonl",
        '{"q": "a", "a": "b"}',
        OptionError,
        "which column is the text. Found 'q', 'a'. Name it",
    ),
    "an empty object": ("a.json", "{}", OptionError, "entry 1: which column is the text. Found no columns"),
    "a comment above the names": (
        "a.csv",
        "# made by hand, 2024\ntext,label\none,x\n",
        OptionError,
        "which column is the text. Its first line .'# made by hand', '2024'. has none of the usual names",
    ),
    "a title above the names": (
        "a.csv",
        "Answers;;\n;;\nid;Text;Label\n1;one;x\n",
        OptionError,
        "which column is the text. Its first line .'Answers', '', ''. has none of the usual names",
    ),
    "preferences": ("a.jsonl", '{"chosen": [{}], "rejected": [{}]}', OptionError, CHAT),
    "a table of Excel": (
        "a.xlsx",
        b"PK\3\4\0\0",
        DataFileError,
        "is no text: byte 4 is zero. Give text in UTF-8, .* form under",
    ),
    "a text beyond its quotation marks": (
        "a.csv",
        "text,label\none, two and three,x\n",
        DataFileError,
        "row 1 has 3 cells; expected 2. See line 2: put a cell with ',' in it between quotation marks",
    ),
    "a cell too few": (
        "a.csv",
        CSV + "three\n",
        DataFileError,
        "expected 2. See line 4: add what is missing, or delete the row",
    ),
    "messages": ("a.jsonl", '{"messages": [{"role": "user", "content": "a"}]}', OptionError, CHAT),
    "ShareGPT": ("a.json", '[{"conversations": [{"from": "human", "value": "a"}]}]', OptionError, CHAT),
    "Alpaca": ("a.json", '[{"instruction": "a", "input": "", "output": "b"}]', OptionError, CHAT),
    "prompts": ("a.jsonl", '{"prompt": "a", "completion": "b"}', OptionError, CHAT),
    "short rows": ("a.csv", "text,label\none\n", DataFileError, "row 1 has 1 cells; expected 2. See line 2"),
    "long rows": ("a.csv", CSV + "three,x,z\n", DataFileError, "row 3 has 3 cells; expected 2. See line 4"),
    "long rows throughout": ("a.csv", "text,label\none,x,z\ntwo,x,z\n", DataFileError, "row 1 has 3 cells; expected 2"),
    "an open quotation mark": (
        "a.csv",
        'text,label\n"one,x\n',
        DataFileError,
        "line 2: unexpected end of data; a quot",
    ),
    "an open quotation mark at the beginning": (
        "a.csv",
        '"text,label\none,x\n',
        DataFileError,
        "line 1: unexpected end",
    ),
    "ragged tabs": ("a.tsv", "text\tlabel\none\n", DataFileError, "row 1 has 1 cells; expected 2"),
    "columns of one name": ("a.csv", "text,text,label\na,b,x\n", OptionError, "2 columns are named 'text'. Rename one"),
    "columns of one name in Parquet": (
        "a.parquet",
        lambda path: parquet.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path),
        OptionError,
        "2 columns are named 'text'. Rename one, and write the file anew",
    ),
    "text and label without a header": (
        "a.csv",
        LONG,
        OptionError,
        "column is the text. Its first line .'how do i send some money', 'money'. .* from 0: --text 0 --label 1",
    ),
    "a label that is a usual name": (
        "a.csv",
        "what is the time now,query\n",
        OptionError,
        "has none of the usual names",
    ),
    "a label that comes again": ("a.csv", "the time,query\nthe day,query\n", OptionError, "none of the usual names"),
    "an unknown header": ("a.csv", "Review,Stars\na b,1\n", OptionError, "Where these are names, give one with --text"),
    "an unknown delimiter": (
        "a.csv",
        "a;b,c\nd;e,f\n",
        OptionError,
        "column is the text. Its first line .'a;b', 'c'. has",
    ),
    "no whole Parquet": (
        "a.parquet",
        b"PAR1 not",
        DataFileError,
        "a.parquet is not whole, or not what its name says .*Copy it again",
    ),
    "no whole Arrow": (
        "a.arrow",
        b"ARROW1 not",
        DataFileError,
        "a.arrow is not whole, or not what its name says .*Copy it again",
    ),
    "compressed Parquet": ("a.parquet.gz", b"", OptionError, ".parquet files are read as they are. Unpack it first"),
    "a cut gz": (
        "a.jsonl.gz",
        gzip.compress(LINES.encode())[:-9],
        DataFileError,
        "is not whole, or not what its name says",
    ),
    "a cut xz": ("a.txt.xz", lzma.compress(b"one")[:-9], DataFileError, "is not whole, or not what its name says"),
    "a cut bz2": ("a.txt.bz2", bz2.compress(b"one")[:-9], DataFileError, "is not whole, or not what its name says"),
    "a cut zst": ("a.txt.zst", zstd("one " * 99)[:-6], DataFileError, "cannot be read: .*[Tt]runcated"),
    "no gz": ("a.txt.gz", b"one", DataFileError, "is not whole, or not what its name says .*Copy it again"),
    "Latin-1": ("a.txt", b"caf\xe9 au lait", DataFileError, "is no text in UTF-8 .*Write it anew in UTF-8"),
    "Latin-1 in a table": ("a.csv", b"text,label\ncaf\xe9,x\n", DataFileError, "is no text in UTF-8 .*Write it anew"),
    "UTF-16 without a mark": (
        "a.txt",
        "one".encode("utf-16-le"),
        DataFileError,
        "no text: byte 1 is zero. Give text in UTF-8",
    ),
    "another suffix, and no UTF-8": ("a.bin", b"\xff\xfe\xfd", DataFileError, "a.bin"),
    "a damaged data set": (
        "saved",
        lambda path: written(path, "state.json", "{"),
        DataFileError,
        "datasets cannot load it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(name: str, tmp_path: Path):
    file, content, kind, told = REFUSED[name]
    path = written(tmp_path, file, content)
    with pytest.raises(kind, match=told) as caught:
        rows(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "columns", "content", "expected"),
    [
        ("a.csv", Columns(("0",), "1"), "one,x\ntwo,y\n", BOTH),
        ("a.csv", Columns(("1",), "0"), "x,one\ny,two\n", BOTH),
        ("a.csv", Columns(("1",), "3"), "a,one,c,4\n", [Row(("one",), "4")]),
        ("a.csv", Columns(("0",), "1"), LONG, LONG_ROWS),
        ("a.csv", Columns(("tweet",)), "Tweet;Mood, or none\n1, 2;x\n", [Row(("1, 2",))]),
        ("a.csv", Columns(("tweet",), "mood"), "Tweet,Mood\none,x\ntwo,y\n", BOTH),
        ("a.csv", Columns(("text",), "label"), CSV + "", BOTH),
        ("a.csv", Columns(("content",)), "text,content,label\na,one,x\n", [ONE]),
        ("a.jsonl", Columns(("q", "a"), "kind"), '{"q": "one", "a": "two", "kind": "x"}', [Row(("one", "two"), "x")]),
        ("a.jsonl", Columns(("completion",)), '{"prompt": "a", "completion": "one"}', [Row(("one",))]),
    ],
)
def test_columns_are_named(tmp_path: Path, name: str, columns: Columns, content: str, expected: list[Row]):
    assert rows(written(tmp_path, name, content), columns=columns) == expected


def test_a_column_that_is_not_there_is_said(tmp_path: Path):
    path = written(tmp_path, "a.jsonl", '{"q": "one", "a": "two"}\n')
    with pytest.raises(OptionError, match="line 1: no column 'answer'; found 'q', 'a'"):
        rows(path, columns=Columns(("answer",)))
    with pytest.raises(OptionError, match="no column 'mood'; found 'one', 'x'"):
        rows(written(tmp_path, "a.csv", "one,x\ntwo,y\n"), columns=Columns(("one",), "mood"))


def test_why_there_is_no_label_is_known(tmp_path: Path):
    path = written(tmp_path, "a.jsonl", '{"text": "a", "label": 1, "category": "x"}')
    assert [row.unlabelled for row in read_rows(str(path))] == ["which column is it, 'label' or 'category'?"]
    path = written(tmp_path, "b.jsonl", '{"premise": "a", "hypothesis": "b", "label": -1}')
    assert [row.unlabelled for row in read_rows(str(path))] == [DECLINED]
    path = written(tmp_path, "c.jsonl", '{"text": "a", "label": ""}\n{"text": "a"}')
    assert [(row.unlabelled, row.where) for row in read_rows(str(path))] == [
        ("'label' is empty", f"{path}, line 1"),
        ("", f"{path}, line 2"),
    ]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path):
    written(tmp_path, "a.txt", "one\ntwo\n")
    written(tmp_path, "b.py", "x = 1")
    found = rows(tmp_path)
    assert [row.texts[0] for row in found] == ["one\n", "two\n", "", "x = 1", ""]
    assert [row.ends for row in found] == [False, False, True, False, True]


FILES = {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test-00000-of-00001.jsonl"}


@pytest.mark.parametrize(
    ("split", "expected", "left_out"),
    [
        ("train", ["train"], {"split 'validation'": ("dev.jsonl",), "split 'test'": (FILES["test"],)}),
        ("validation", ["dev"], {"split 'train'": ("train.jsonl",), "split 'test'": (FILES["test"],)}),
        ("val", ["dev"], {"split 'train'": ("train.jsonl",), "split 'test'": (FILES["test"],)}),
        ("test", ["test"], {"split 'validation'": ("dev.jsonl",), "split 'train'": ("train.jsonl",)}),
        ("all", ["dev", "test", "train"], {}),
    ],
)
def test_one_split_of_a_folder_is_read(tmp_path: Path, split: str, expected: list[str], left_out: dict[str, Any]):
    for name, file in FILES.items():
        written(tmp_path, file, json.dumps({"text": name}))
    written(tmp_path, "README.md", "about")
    written(tmp_path, ".cache/train.jsonl", "hidden")
    found = read_rows(str(tmp_path), split=split)
    assert [row.texts[0] for row in found] == expected
    assert found.left_out == {"about the data": ("README.md",), **left_out}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("train/a.jsonl", "test/a.jsonl"), ["train/a.jsonl"]),
        (("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"), None),
        (("stories.jsonl", "test.jsonl"), ["stories.jsonl"]),
        (("train.jsonl", "stories.jsonl"), ["train.jsonl"]),
        (("latest.jsonl", "developed.jsonl"), None),
        (("train.jsonl", "notes.pdf", "config.json"), ["train.jsonl"]),
    ],
)
def test_splits_go_by_names(tmp_path: Path, files: tuple[str, ...], expected: list[str] | None):
    for file in files:
        written(tmp_path, file, json.dumps({"text": file}))
    found = read_rows(str(tmp_path))
    assert sorted(row.texts[0] for row in found) == sorted(expected or files)
    named = {name for names in found.left_out.values() for name in names}
    assert named == set(files) - set(expected or files)


def test_folders_that_cannot_be_read_are_said(tmp_path: Path):
    with pytest.raises(DataFileError, match="no file to read in it; expected some of .jsonl"):
        rows(tmp_path)
    written(tmp_path, "test.jsonl", '{"text": "one"}')
    with pytest.raises(
        DataFileError, match="no file of the split 'train' in it; found 'test'. Choose one with --split"
    ):
        rows(tmp_path)
    assert rows(tmp_path, split="test") == [Row(("one",))]
    written(tmp_path, "b.csv", CSV)
    with pytest.raises(OptionError, match="several forms: CSV .b.csv, ..... JSON .test.jsonl, ..... Give one file"):
        rows(tmp_path)
    written(tmp_path, "code/a.py", "x = 1")
    written(tmp_path, "code/test_a.py", "y = 1")
    written(tmp_path, "code/settings.json", "{}")
    found = read_rows(str(tmp_path / "code"))
    assert [row.texts[0] for row in found] == ["x = 1", "", "y = 1", ""]
    assert found.left_out == {"JSON beside texts": ("settings.json",)}
    with pytest.raises(DataFileError, match="no file of the split 'dev' in it; found none by their names"):
        rows(tmp_path / "code", split="dev")


def test_what_holdfast_wrote_into_a_folder_is_no_data(tmp_path: Path):
    written(tmp_path, "a.csv", CSV)
    with new_folder(tmp_path / "keep") as folder:
        written(folder, "importance_config.json", "{}")
        written(folder, "notes.csv", CSV)
    found = read_rows(str(tmp_path))
    assert list(found) == BOTH
    assert found.left_out == {
        "written by holdfast": ("keep/holdfast.json", "keep/importance_config.json", "keep/notes.csv")
    }


def test_splits_that_datasets_saved_are_chosen(tmp_path: Path):
    both = datasets.DatasetDict(train=stored({"text": ["one"]}), validation=stored({"text": ["two"]}))
    both.save_to_disk(tmp_path / "both")
    assert rows(tmp_path / "both", split="dev") == [Row(("two",))]
    assert rows(tmp_path / "both", split="all") == [Row(("one",)), Row(("two",))]
    with pytest.raises(DataFileError, match="no split 'test' in it; found 'train', 'validation'. Choose one"):
        rows(tmp_path / "both", split="test")
    assert read_rows(str(tmp_path / "both")).left_out == {"split 'validation'": ("validation",)}


def test_intents_stand_in_two_files(tmp_path: Path):
    written(tmp_path, "train/seq.in", "one\ntwo\n")
    with pytest.raises(DataFileError, match="label is missing beside seq.in"):
        rows(tmp_path / "train")
    written(tmp_path, "train/label", "x\n")
    with pytest.raises(DataFileError, match="train: label ends before line 2; expected as many in both"):
        rows(tmp_path / "train")
    written(tmp_path, "train/label", "x\ny\n")
    assert rows(tmp_path / "train") == BOTH
    written(tmp_path, "test/seq.in", "no\n")
    written(tmp_path, "test/label", "x\n")
    assert rows(tmp_path) == BOTH
    assert rows(tmp_path, split="test") == [Row(("no",), "x")]


def test_what_was_found_is_described(tmp_path: Path):
    written(tmp_path, "train.csv", "Text;Label\none;x\ntwo;y\n")
    written(tmp_path, "test.csv", CSV)
    found = read_rows(str(tmp_path))
    assert (found.chosen.text, found.chosen.label, found.split) == (("Text",), "Label", "train")
    assert found.describe() == (
        f"{tmp_path}: CSV with ';', with a header, split train, text 'Text', label 'Label', "
        "not read: test.csv (split 'test')"
    )
    path = written(tmp_path, "a.jsonl", '{"text": "a", "label": 1, "score": 2}')
    assert read_rows(str(path)).describe() == f"{path}: JSON Lines, text 'text', label one of 'label', 'score'"
    assert read_rows(str(written(tmp_path, "a.txt", "one"))).chosen.text == ()
    with pytest.raises(EmptyDataError, match="no row in it"):
        read_rows(str(written(tmp_path, "b.jsonl", ""))).describe()
    for number in range(5):
        written(tmp_path, f"more/{number}.jsonl", '{"text": "one"}')
        written(tmp_path, f"more/{number}.pdf", "")
    told = read_rows(str(tmp_path / "more")).describe()
    assert told.endswith(
        "JSON Lines, 5 files, text 'text', not read: 0.pdf, 1.pdf, 2.pdf and 2 more (of no form that is read)"
    )


def test_rows_are_read_again_from_the_beginning(tmp_path: Path):
    found = read_rows(str(written(tmp_path, "a.json", f"[{','.join(LINES.splitlines())}]")))
    assert list(found) == list(found) == BOTH


def test_a_name_is_one_of_the_datasets_library(monkeypatch: pytest.MonkeyPatch):
    asked = []
    named = stored(LABELLED, CLASSES).to_iterable_dataset()
    library = ModuleType("datasets")

    def load_dataset(name: str, configuration: str | None, *, split: str, streaming: bool) -> Any:
        asked.append((name, configuration, split, streaming))
        if name == "nobody/nothing":
            raise FileNotFoundError("no such data set\non the hub")
        if name == "someone/v1.5":
            return named
        return iter_then_fail() if name == "far/away" else [{"text": "one", "label": 1}]

    def iter_then_fail() -> Any:
        yield {"text": "one"}
        raise ConnectionError("gone")

    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert list(read_rows("someone/something:small", split="test")) == [Row(("one",), 1)]
    assert asked == [("someone/something", "small", "test", True)]
    assert list(read_rows("someone/v1.5")) == BOTH
    with pytest.raises(DataFileError, match="nothing: neither a file or folder nor a data set .* no such data set on"):
        read_rows("nobody/nothing")
    with pytest.raises(DataFileError, match="far/away: no more than 1 rows can be read: gone"):
        list(read_rows("far/away"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(OptionError, match="read by datasets, which is not installed. Give text, JSON or CSV, or: pip"):
        read_rows("someone/something")


def test_without_pyarrow_its_forms_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = written(tmp_path, "a.parquet", as_parquet({"text": ["one"]}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OptionError, match="a.parquet: it is read by pyarrow, which is not installed. .* pip install"):
        rows(path)


def test_what_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(DataFileError, match="no such file or folder. Give a file"):
        rows(tmp_path / "nothing.csv")
    with pytest.raises(DataFileError, match="no such file or folder. Give a file"):
        read_rows("./nothing")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataFileError, match="pipe.jsonl is no regular file. Give a file or a folder"):
        rows(tmp_path / "pipe.jsonl")


def test_long_elements_of_an_array_are_read_whole(tmp_path: Path):
    texts = ["a" * 300_000, "é" * 70_000, "b"]
    path = written(tmp_path, "a.json", json.dumps([{"text": text} for text in texts]))
    assert [row.texts[0] for row in rows(path)] == texts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '[{"text": "one", "label": "x"},' + " " * 2**20 + "no JSON"),
        ("a.jsonl", LINES + " \n" * 2**20 + "no JSON"),
        ("a.csv", CSV + "three,x\n" * 2**15 + "a cell too few\n"),
    ],
)
def test_no_more_is_read_than_is_asked_for(tmp_path: Path, name: str, content: str):
    found = iter(read_rows(str(written(tmp_path, name, content))))
    assert next(found) == ONE
    with pytest.raises(DataFileError):
        list(found)


def test_a_label_is_a_class_by_its_name_or_else_by_its_number():
    assert Row(("a",), "1").class_in(("1", "0")) == 0
    assert Row(("a",), "1").class_in(("x", "y")) == Row(("a",), 1).class_in(("x", "y")) == 1
    assert Row(("a",), "x", number=1).class_in(("LABEL_0", "LABEL_1")) == 1
    for row in (Row(("a",), "01"), Row(("a",), "2"), Row(("a",), -1), Row(("a",), 1.0), Row(("a",), "1", number=0)):
        assert row.class_in(("x", "y")) is None


def test_nothing_is_warned_of_or_left_open(tmp_path: Path):
    path = written(tmp_path, "a.jsonl.gz", gzip.compress(LINES.encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert next(iter(read_rows(str(path)))) == ONE
