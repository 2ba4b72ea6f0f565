from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.lab.idx_files import fake_files, write
from tests.lab.tiny import tiny
from torch.utils.data import Dataset, TensorDataset

from holdfast.errors import DataFileError, HoldfastError, OptionError, RunMismatchError
from holdfast.lab import RunConfig, Task, configure, load_data, run
from holdfast.lab.streams import as_task, build_stream, digits, fingerprint
from holdfast.lab.streams.sources import DATA, register_data

N = 72


def pictures(n: int = N, *, seed: int = 0, channels: int = 3, side: int = 5) -> np.ndarray:
    """Bytes [n, side, side, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def labels(n: int = N, classes: int = 4) -> np.ndarray:
    return np.arange(n) % classes


def sizes(task: Task) -> tuple[int, int, int]:
    return len(task.train), len(task.validation), len(task.test)


def same(first: Task, second: Task) -> bool:
    return fingerprint(first) == fingerprint(second)


class TestNpz:
    @pytest.mark.parametrize(
        ("inputs", "targets"), [("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("{}_data", "{}_fine_label")]
    )
    def test_parts_by_their_names(self, tmp_path: Path, inputs: str, targets: str):
        arrays = {}
        for seed, (part, n) in enumerate((("train", 40), ("val", 8), ("test", 12))):
            arrays[inputs.format(part)] = pictures(n, seed=seed)
            arrays[targets.format(part)] = labels(n)
        np.savez(tmp_path / "pictures.npz", **arrays)
        task = load_data(str(tmp_path / "pictures.npz"))
        assert (task.name, sizes(task), task.classes) == ("pictures", (40, 8, 12), (0, 1, 2, 3))
        assert task.train.inputs.shape == (40, 3, 5, 5)
        expected = torch.from_numpy(pictures(12, seed=2)).permute(0, 3, 1, 2) / 255
        assert torch.equal(task.test.inputs, expected)
        assert task.train.targets.dtype == torch.int64

    def test_x_and_y_alone_have_a_sixth_held_out_to_test_and_then_a_twelfth_to_validate(self, tmp_path: Path):
        np.savez(tmp_path / "a.npz", x=pictures(), y=labels())
        np.savez(tmp_path / "b.npz", images=pictures(), labels=labels())
        task = load_data(str(tmp_path / "a.npz"))
        assert sizes(task) == (55, 5, 12)
        assert same(task, load_data(str(tmp_path / "b.npz")))
        rows = torch.cat([part.inputs for part in (task.train, task.validation, task.test)]).flatten(1)
        assert len(rows.unique(dim=0)) == N

    def test_one_that_is_written_anew_is_read_anew(self, tmp_path: Path):
        path = tmp_path / "a.npz"
        np.savez(path, x=pictures(), y=labels())
        first = load_data(str(path))
        assert load_data(str(path)) is first
        np.savez(path, x=pictures(36, seed=1), y=labels(36))
        assert not same(load_data(str(path)), first)

    def test_labels_of_any_kind_are_numbered_in_their_order(self, tmp_path: Path):
        np.savez(tmp_path / "words.npz", x=pictures(18), y=np.array(["cat", "bee", "cat", "ant", "bee", "ant"] * 3))
        np.savez(tmp_path / "far.npz", x=pictures(18), y=np.array([70, 5, 70, -3, 5, -3] * 3))
        for name in ("words", "far"):
            task = load_data(str(tmp_path / f"{name}.npz"))
            assert task.classes == (0, 1, 2)
            found = torch.cat([part.targets for part in (task.train, task.validation, task.test)])
            assert sorted(found.tolist()) == [0] * 6 + [1] * 6 + [2] * 6

    def test_numbers_as_targets_are_a_regression(self, tmp_path: Path):
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "rows.npz", x=rng.normal(size=(24, 5)), y=rng.normal(size=(24, 2)))
        task = load_data(str(tmp_path / "rows.npz"))
        assert task.is_regression
        assert (task.train.targets.shape[1], task.classes) == (2, (0, 1))
        assert task.train.targets.dtype == torch.float32
        np.savez(tmp_path / "row.npz", x=rng.normal(size=(24, 5)), y=rng.normal(size=24))
        assert load_data(str(tmp_path / "row.npz")).train.targets.shape[1:] == (1,)

    def test_rows_of_a_single_one_are_likely_classes(self):
        rows = np.eye(3, dtype=np.float32)[np.arange(24) % 3]
        with pytest.warns(UserWarning, match=r"data rows: each row .* likely classes; .* Give targets\.argmax\(1\)"):
            assert as_task((np.zeros((24, 2)), rows), name="rows").is_regression
        assert as_task((np.zeros((24, 2)), rows.argmax(1)), name="rows").classes == (0, 1, 2)
        assert as_task((np.zeros((24, 2)), rows[:, :1]), name="rows").is_regression

    @pytest.mark.parametrize(
        ("arrays", "error", "message"),
        [
            ({"x_train": [[1.0]]}, DataFileError, "arrays x_train; expected x_train and y_train, and x_test and y_te"),
            ({"weights": [1.0]}, DataFileError, "arrays weights; expected x_train"),
            ({"x": [[1.0], [2.0]], "y": [0]}, OptionError, "2 inputs and 1 targets; expected as many"),
            (
                {"x": [[1.0]] * 12, "y": [0, 1] * 6},
                OptionError,
                "10 examples to train on; expected at least 12, to hold",
            ),
            ({"x": [[np.nan]] * 3, "y": [0, 1, 0]}, OptionError, "an input is not finite. Clean the data."),
            ({"x": [["a"]] * 3, "y": [0, 1, 0]}, OptionError, "inputs of type <U1; expected numbers."),
            ({"x": [[1.0]] * 3, "y": [0.5, np.inf, 0.0]}, OptionError, "a target is not finite. Clean the data."),
            ({"x": [[1.0]] * 3, "y": [[0, 1]] * 3}, OptionError, "targets of shape .*; expected one class an example"),
            (
                {"x_train": [[1.0]] * 3, "y_train": [0] * 3, "x_test": [[1.0, 2.0]] * 3, "y_test": [0] * 3},
                OptionError,
                r"inputs of shapes \[\[1\], \[2\]\]; expected one shape in all parts.",
            ),
            ({"x": [[1.0]] * 24, "y": [7] * 24}, OptionError, "one class alone, 7; expected two or more, to be told"),
        ],
    )
    def test_what_cannot_be_learned(self, tmp_path: Path, arrays: dict, error: type[HoldfastError], message: str):
        np.savez(tmp_path / "a.npz", **{name: np.asarray(value) for name, value in arrays.items()})  # type: ignore[arg-type]
        with pytest.raises(error, match=message):
            load_data(str(tmp_path / "a.npz"))

    def test_pickles_are_refused_and_so_is_what_is_no_file_of_numpy(self, tmp_path: Path):
        np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object), y=labels(1))
        (tmp_path / "b.npz").write_text("text")
        for name in "ab":
            with pytest.raises(DataFileError, match=r"no .npz of plain arrays. Write it with numpy.savez."):
                load_data(str(tmp_path / f"{name}.npz"))


class TestIdx:
    @pytest.mark.parametrize("compress", [True, False])
    def test_files_as_mnist_has_them(self, tmp_path: Path, compress: bool):
        folder = write(tmp_path / "images", fake_files(), compress=compress)
        task = load_data(str(folder))
        assert (task.name, sizes(task), task.train.inputs.shape[1:]) == ("mnist", (22, 2, 10), (1, 28, 28))

    def test_images_of_another_size(self, tmp_path: Path):
        folder = write(tmp_path / "small", fake_files(side=5))
        task = load_data(str(folder))
        assert (task.name, sizes(task), task.train.inputs.shape[1:]) == ("small", (22, 2, 10), (1, 5, 5))
        assert torch.equal(task.test.inputs[:, 0, 0, 0], torch.arange(10) / 255)


def write_images(folder: Path, *, per_class: int = 12, seed: int = 0, side: int = 5) -> Path:
    """Two classes of colour images, the second as a mixture of formats and with a folder in it."""
    for number, name in enumerate(("ant", "bee")):
        (folder / name / "more").mkdir(parents=True)
        for index, image in enumerate(pictures(per_class, seed=seed + number, side=side)):
            where = folder / name / ("more" if index == 0 else "")
            Image.fromarray(image).save(where / f"{index:02}.png")
    return folder


class TestImageFolder:
    def test_a_folder_a_class(self, tmp_path: Path):
        task = load_data(str(write_images(tmp_path / "insects")))
        assert (task.name, sizes(task), task.classes) == ("insects", (19, 1, 4), (0, 1))
        assert task.train.inputs.shape[1:] == (3, 5, 5)
        found = torch.cat([part.inputs for part in (task.train, task.validation, task.test)])
        expected = torch.from_numpy(np.concatenate([pictures(12), pictures(12, seed=1)])).permute(0, 3, 1, 2) / 255
        assert torch.equal(found.flatten(1).unique(dim=0), expected.flatten(1).unique(dim=0))

    def test_parts_have_folders_of_their_own(self, tmp_path: Path):
        write_images(tmp_path / "train")
        write_images(tmp_path / "valid", per_class=2, seed=5)
        write_images(tmp_path / "test", per_class=3, seed=9)
        assert sizes(load_data(str(tmp_path))) == (24, 4, 6)

    def test_grey_images_have_one_channel(self, tmp_path: Path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            for index, image in enumerate(pictures(8)):
                Image.fromarray(image[..., 0]).save(tmp_path / name / f"{index}.png")
        assert load_data(str(tmp_path)).train.inputs.shape[1:] == (1, 5, 5)

    def test_a_folder_without_pictures_makes_no_class_and_is_named(self, tmp_path: Path):
        (write_images(tmp_path / "insects") / "wasp").mkdir()
        (tmp_path / "insects" / ".cache").mkdir()
        with pytest.warns(UserWarning, match=r"no pictures in wasp, of which no class is made\. Put PNG or JPEG files"):
            assert load_data(str(tmp_path / "insects")).classes == (0, 1)

    def test_what_cannot_be_read(self, tmp_path: Path):
        write_images(tmp_path / "sizes")
        Image.fromarray(pictures(1, side=6)[0]).save(tmp_path / "sizes" / "ant" / "large.png")
        with pytest.raises(
            DataFileError,
            match=r"several sizes: ant/01.png has 5x5 .* and ant/large.png has 6x6 .*; expected one. Make",
        ):
            load_data(str(tmp_path / "sizes"))
        write_images(tmp_path / "broken")
        (tmp_path / "broken" / "ant" / "x.png").write_text("no picture")
        with pytest.raises(
            DataFileError, match="x.png: no picture that can be read: .* Replace it or remove it, or leave"
        ):
            load_data(str(tmp_path / "broken"))
        (tmp_path / "empty" / "ant").mkdir(parents=True)
        with pytest.raises(DataFileError, match="no pictures in folders of it; expected a folder a class"):
            load_data(str(tmp_path / "empty"))
        (tmp_path / "bare").mkdir()
        with pytest.raises(
            DataFileError, match="bare: no data; expected a .npz file, a folder with IDX files, a folde"
        ):
            load_data(str(tmp_path / "bare"))


class TestHuggingFace:
    def test_what_datasets_saved(self, tmp_path: Path):
        datasets = pytest.importorskip("datasets")
        rows = {"pixel_values": np.random.default_rng(0).normal(size=(24, 6)).tolist(), "label": labels(24).tolist()}
        datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "one"))
        task = load_data(str(tmp_path / "one"))
        assert (sizes(task), task.train.inputs.shape[1:], task.classes) == ((19, 1, 4), (6,), (0, 1, 2, 3))
        whole = datasets.DatasetDict({part: datasets.Dataset.from_dict(rows) for part in ("train", "test")})
        whole.save_to_disk(str(tmp_path / "two"))
        assert sizes(load_data(str(tmp_path / "two"))) == (22, 2, 24)
        assert same(as_task(whole, name="x"), load_data(str(tmp_path / "two")))

    def test_columns_that_nobody_knows(self, tmp_path: Path):
        datasets = pytest.importorskip("datasets")
        odd = datasets.Dataset.from_dict({"height": [1.0, 2.0], "label": [0, 1]})
        with pytest.raises(OptionError, match="data odd, train: columns height, label; expected one of x, images"):
            as_task(odd, name="odd")


class Rows(Dataset):
    """Map-style, of (input, target, and what is not asked for)."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        return torch.full((2, 3), float(index)), index % 3, "more"


def rows() -> Rows:
    return Rows()


def pairs() -> tuple[Any, Any]:
    return Rows(), TensorDataset(torch.zeros(6, 2, 3), torch.arange(6) % 3)


def regression() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    return inputs, inputs[:, :2].sum(1, keepdim=True)


def whole() -> Task:
    return digits()


def broken() -> Any:
    return 3


class TestFunctions:
    @pytest.mark.parametrize(
        ("name", "expected"), [("rows", (19, 1, 4)), ("pairs", (22, 2, 6)), ("regression", (37, 3, 8))]
    )
    def test_what_they_may_give(self, name: str, expected: tuple[int, int, int]):
        task = load_data(f"{__name__}:{name}")
        assert (task.name, sizes(task)) == (name, expected)

    def test_a_task_is_taken_as_it_is(self):
        assert same(load_data(f"{__name__}:whole"), digits())

    def test_mappings_by_part(self):
        arrays = pictures(), labels()
        task = as_task({"train": arrays, "validation": arrays, "test": arrays}, name="x")
        assert sizes(task) == (N, N, N)
        with pytest.raises(OptionError, match="data x: parts test; expected one that is called train."):
            as_task({"test": arrays}, name="x")

    def test_items_that_are_mappings(self):
        items = [{"image": np.zeros((3, 3), np.uint8), "label": index % 2} for index in range(18)]
        assert as_task(items, name="x").train.inputs.shape[1:] == (1, 3, 3)

    @pytest.mark.parametrize(
        ("found", "message"),
        [
            (3, "data x, train: a int; expected a Task, a dataset of .input, target., a Hugging Face dataset, or arr"),
            ([1, 2, 3, 4], r"data x, train: its items are int; expected \(input, target\)."),
            ([(np.zeros(2), 0), (np.zeros(3), 1)] * 2, "inputs of different shapes; expected one. Resize the images"),
        ],
    )
    def test_what_they_may_not_give(self, found: Any, message: str):
        with pytest.raises(OptionError, match=message):
            as_task(found, name="x")

    def test_names_that_are_none(self):
        with pytest.raises(DataFileError, match=r"data 'digit': no such file or folder, and no name of data \(digits"):
            load_data("digit")
        with pytest.raises(OptionError, match="data 'no_such_module:rows' cannot be imported: ModuleNotFoundError"):
            load_data("no_such_module:rows")


def test_data_by_a_name_of_ones_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DATA, "_found", {**vars(DATA)["_found"]})
    asked = []
    register_data("mine", summary="made up")(lambda data_dir: asked.append(data_dir) or (pictures(), labels()))
    assert load_data("mine").name == "mine"
    assert load_data("mine", data_dir="there").name == "mine"
    assert asked == [None, "there"]
    assert len(build_stream("split", data="mine")) == 2


class TestRuns:
    """Data that are given, from the configuration to the result."""

    def mine(self, path: Path, *, seed: int = 0, **more: Any) -> RunConfig:
        np.savez(path, x=pictures(seed=seed), y=labels())
        small = {"epochs": 1, "hidden": (4,), "batch_size": 16}
        return configure("split", "none", data=str(path), **small, **more)

    def test_every_scheme_of_tasks(self, tmp_path: Path):
        config = self.mine(tmp_path / "a.npz")
        found = run(config, output=tmp_path / "runs")
        assert (found.stream, len(found.accuracy_matrix), found.scenario) == ("split", 2, "task")
        assert found.config["data"] == str(tmp_path / "a.npz")
        assert found.config["fingerprint"] == fingerprint(load_data(str(tmp_path / "a.npz")))
        for stream in ("permuted", "rotated"):
            other = configure(stream, "none", data=str(tmp_path / "a.npz"), num_tasks=2, epochs=1, hidden=(4,))
            assert len(run(other, output=tmp_path / "runs").accuracy_matrix) == 2

    def test_the_folder_hangs_on_the_data_and_not_on_their_place(self, tmp_path: Path):
        one, copy, other = (
            self.mine(tmp_path / name, seed=seed) for name, seed in (("a.npz", 0), ("b.npz", 0), ("c.npz", 1))
        )
        assert one.name == copy.name
        assert one.name != other.name

    def test_a_net_of_images_takes_colours(self, tmp_path: Path):
        np.savez(tmp_path / "a.npz", x=pictures(), y=labels())
        for net in ("convolution", "attention"):
            config = configure("split", "ewc-fisher", data=str(tmp_path / "a.npz"), net=net, epochs=1, batch_size=16)
            assert run(config, output=tmp_path / "runs").config["net"] == net

    def test_a_regression(self, tmp_path: Path):
        source = f"{__name__}:regression"
        small = {"data": source, "num_tasks": 2, "epochs": 1, "hidden": (4,)}
        for method in ("none", "ewc-fisher", "lwf", "slda"):
            if method in ("lwf", "slda"):
                with pytest.raises(
                    OptionError, match=f"permuted, {method}: the targets are numbers; expected scenario domai"
                ):
                    run(configure("permuted", method, **small), output=tmp_path)
                continue
            found = run(configure("permuted", method, **small), output=tmp_path)
            assert len(found.accuracy_matrix) == 2
        with pytest.raises(OptionError, match="split: the targets of regression are numbers; expected classes."):
            run(configure("split", "none", data=source), output=tmp_path)


class TestProvenance:
    """What a folder was begun with."""

    @pytest.fixture
    def folders(self, tmp_path: Path) -> tuple[Path, Path]:
        return tuple(write(tmp_path / name, fake_files(120, 20, offset=n)) for n, name in enumerate("ab"))  # type: ignore[return-value]

    @pytest.mark.parametrize("killed", [False, True])
    def test_other_data_under_the_same_name_are_refused(self, tmp_path: Path, folders: tuple[Path, Path], killed: bool):
        config = tiny("none", stream="split-mnist", iterations=5)
        (tmp_path / "runs").mkdir()
        first, second = folders
        if killed:

            def on_event(event: Any) -> None:
                if event["event"] == "task" and event["task"] == 1:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                run(config, output=tmp_path / "runs", data_dir=first, on_event=on_event)
        else:
            run(config, output=tmp_path / "runs", data_dir=first)
        with pytest.raises(
            RunMismatchError, match="was begun with other data: .* there, .* here .* Give the same --data or"
        ):
            run(config, output=tmp_path / "runs", data_dir=second)
        assert run(config, output=tmp_path / "runs", data_dir=first).accuracy_matrix
        written = json.loads((tmp_path / "runs" / config.name / "config.json").read_text())
        assert written["data"] == fingerprint(load_data("mnist", data_dir=first))
        assert written["plugins"] == {}

    def test_a_folder_of_an_earlier_version_is_read(self, tmp_path: Path, folders: tuple[Path, Path]):
        config = tiny("none", stream="split-mnist", iterations=5)
        found = run(config, output=tmp_path, data_dir=folders[0])
        path = tmp_path / config.name / "config.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({name: content[name] for name in ("config", "versions")}))
        assert run(config, output=tmp_path, data_dir=folders[1]) == found

    @pytest.fixture
    def plugin(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        path = tmp_path / "my_methods.py"
        path.write_text("from holdfast.lab import Learner\n\n\nclass Mine(Learner):\n    pass\n")
        monkeypatch.syspath_prepend(tmp_path)
        yield path
        sys.modules.pop("my_methods", None)

    def test_so_is_another_plug_in(self, tmp_path: Path, plugin: Path):
        config = tiny("my_methods:Mine", epochs=1)
        run(config, output=tmp_path / "runs")
        written = json.loads((tmp_path / "runs" / config.name / "config.json").read_text())
        assert list(written["plugins"]) == ["my_methods"]
        plugin.write_text(plugin.read_text() + "\n# changed\n")
        with pytest.raises(RunMismatchError, match="was begun with another version of my_methods. Choose"):
            run(config, output=tmp_path / "runs")
