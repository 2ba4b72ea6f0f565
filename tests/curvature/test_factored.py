from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tests.files.folders import edit
from torch import Tensor, nn

from holdfast import FactoredImportance, Importance, ImportanceInfo, KroneckerFactors
from holdfast.curvature import importance_of, shapes_of
from holdfast.errors import FileFormatError, NotFiniteError, OptionError, ParameterMismatchError
from holdfast.records import check_names

INFO = ImportanceInfo("kfac-exact", 10, loss="categorical", unit="nats/weight^2", nats_per_unit=1.0)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 2), nn.LayerNorm(4), nn.Flatten(), nn.Linear(12, 2, bias=False))


def positive(size: int, seed: int = 0) -> Tensor:
    x = torch.randn(size, size + 2, generator=torch.Generator().manual_seed(seed))
    return x @ x.T


def factors(seed: int = 0) -> dict[str, KroneckerFactors]:
    return {
        "0.weight": KroneckerFactors(positive(5, seed), positive(3, seed + 1), shape=(3, 2, 2), bias="0.bias"),
        "3.weight": KroneckerFactors(positive(12, seed + 2), positive(2, seed + 3), shape=(2, 12)),
    }


def importance(seed: int = 0, info: ImportanceInfo = INFO) -> FactoredImportance:
    return FactoredImportance(factors(seed), {"1.weight": torch.full((4,), 2.0), "1.bias": torch.ones(4)}, info)


def blocks(found: FactoredImportance) -> dict[str, Tensor]:
    return {name: torch.kron(f.outputs, f.inputs) for name, f in found.items()}


def test_what_it_holds():
    found = importance()
    assert list(found) == ["0.weight", "3.weight"]
    assert len(found) == 2
    assert found["0.weight"].matrix_shape == (3, 5)
    assert found["3.weight"].matrix_shape == (2, 12)
    assert found.parameter_names() == ["0.weight", "0.bias", "3.weight"]
    assert list(found.diagonal) == ["1.weight", "1.bias"]
    assert repr(found) == "FactoredImportance(kfac-exact, 2 layers of 39 weights, diagonal for 8, 10 examples)"
    double = {name: replace(f, inputs=f.inputs.double()) for name, f in factors().items()}
    assert FactoredImportance(double, {}, INFO)["0.weight"].inputs.dtype == torch.float32


def test_its_diagonal_is_that_of_the_product():
    found = importance()
    diagonal = found.to_diagonal()
    assert isinstance(diagonal, Importance)
    assert diagonal.info == INFO
    assert {name: tuple(v.shape) for name, v in diagonal.items()} == {
        name: tuple(p.shape) for name, p in net().named_parameters()
    }
    table = blocks(found)["0.weight"].diagonal().reshape(3, 5)
    torch.testing.assert_close(diagonal["0.weight"].flatten(1), table[:, :4])
    torch.testing.assert_close(diagonal["0.bias"], table[:, 4])
    assert diagonal["1.weight"].tolist() == [2.0] * 4
    assert found.correlation(diagonal)["0.weight"] == pytest.approx(1.0)
    assert found.correlation(importance(seed=9)).keys() == diagonal.keys()


def test_both_kinds_are_read_by_the_same_names():
    found = importance()
    diagonal = found.to_diagonal()
    shapes = {name: tuple(p.shape) for name, p in net().named_parameters()}
    for one in (found, diagonal):
        assert {name: tuple(value.shape) for name, value in one.covers.items()} == shapes
        assert {*shapes_of(one.layers), *one.diagonal} == set(shapes)
        check_names(one.covers, net(), where="here")
        with pytest.raises(ParameterMismatchError, match="here: 4 names not among the trainable parameters"):
            check_names({f"own.{n}": value for n, value in one.covers.items() if n != "1.bias"}, net(), where="here")
    assert diagonal.covers is diagonal


def test_an_importance_is_made_of_its_parts():
    found = importance()
    again = importance_of(found.layers, found.diagonal, found.info)
    assert repr(again) == repr(found)
    for name, block in blocks(found).items():
        torch.testing.assert_close(torch.kron(again.layers[name].outputs, again.layers[name].inputs), block)
    flat = importance_of({}, found.diagonal, found.info)
    assert type(flat) is Importance
    assert flat["1.weight"].tolist() == [2.0] * 4


def test_it_scales():
    half = 0.5 * importance()
    for name, block in blocks(half).items():
        torch.testing.assert_close(block, 0.5 * blocks(importance())[name])
    assert half.diagonal["1.weight"].tolist() == [1.0] * 4
    assert (half.info.unit, half.info.nats_per_unit) == ("nats/weight^2 / 0.5", 2.0)
    with pytest.raises(OptionError, match="cannot scale by -1; expected a finite number >= 0"):
        importance() * -1


def test_a_sum_has_the_partial_traces_of_the_sum():
    a, b = importance(), 3.0 * importance(seed=9)
    b = FactoredImportance(dict(b), b.diagonal, INFO)
    found = a + b
    assert found.info == replace(INFO, num_examples=20, num_targets=20)
    assert found.diagonal["1.weight"].tolist() == [8.0] * 4
    for name, f in found.items():
        out, inputs = f.matrix_shape
        both = (blocks(a)[name] + blocks(b)[name]).reshape(out, inputs, out, inputs)
        block = blocks(found)[name].reshape(out, inputs, out, inputs)
        for traced in ("aiaj->ij", "aibi->ab"):
            torch.testing.assert_close(torch.einsum(traced, block), torch.einsum(traced, both), rtol=1e-4, atol=1e-4)
    twice = a + a
    for name, block in blocks(twice).items():  # of one and the same product it is the sum
        torch.testing.assert_close(block, 2 * blocks(a)[name], rtol=1e-4, atol=1e-4)
    nothing = 0.0 * a
    assert not (nothing + nothing)["0.weight"].outputs.any()


def test_a_sum_of_what_does_not_fit():
    other = FactoredImportance({"0.weight": replace(factors()["3.weight"])}, {}, INFO)
    with pytest.raises(ParameterMismatchError, match=r"cannot add: '0.weight' differ in shape.*Add their to_diagonal"):
        importance() + other
    flat = FactoredImportance({}, {"0.bias": torch.ones(3)}, INFO)
    with pytest.raises(ParameterMismatchError, match="cannot add: '0.bias' differ"):
        importance() + flat
    assert (importance().to_diagonal() + flat.to_diagonal())["0.bias"].shape == (3,)
    alone = FactoredImportance({"3.weight": factors()["3.weight"]}, {}, INFO)
    assert list(alone + FactoredImportance({"0.weight": factors()["0.weight"]}, {}, INFO)) == ["3.weight", "0.weight"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda m: m.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(torch.nan)), "an entry is not finite"),
        (lambda m: m.triu(), "not symmetric"),
        (lambda m: m - 2 * m.trace() * torch.eye(len(m)), "a negative eigenvalue"),
    ],
)
def test_factors_that_are_none(change, fault):
    bad = factors()
    bad["0.weight"] = replace(bad["0.weight"], inputs=change(bad["0.weight"].inputs))
    bad["3.weight"] = replace(bad["3.weight"], outputs=change(bad["3.weight"].outputs))
    with pytest.raises(
        NotFiniteError, match=rf"kfac-exact.*found inputs of '0.weight' \({fault}\), outputs of '3.weight' \({fault}\)"
    ):
        FactoredImportance(bad, {}, INFO)


def test_rounding_is_no_fault():
    x = torch.randn(40, 3)  # of rank 3: about half of the zero eigenvalues come out negative
    low = KroneckerFactors(x @ x.T + 1e-6 * torch.randn(40, 40).triu(), torch.zeros(2, 2), shape=(2, 40))
    found = FactoredImportance({"w": low}, {}, INFO)["w"]
    assert torch.equal(found.inputs, found.inputs.T)


def test_shapes_that_do_not_fit_the_layer():
    bad = {"w": KroneckerFactors(positive(4), positive(3), shape=(3, 4), bias="b")}
    with pytest.raises(
        ParameterMismatchError,
        match=r"'w', a weight of \(3, 4\) with bias, has factors \(4, 4\) and \(3, 3\), expected \(5, 5\) and \(3, 3\)",
    ):
        FactoredImportance(bad, {}, INFO)
    with pytest.raises(ParameterMismatchError, match="'0.bias' in a factored layer and in the diagonal too"):
        FactoredImportance(factors(), {"0.bias": torch.ones(3)}, INFO)


# --- files


def test_saved_and_loaded(tmp_path):
    found = importance()
    found.save(tmp_path / "f")
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == [
        "README.md",
        "factors.safetensors",
        "holdfast.json",
        "importance.safetensors",
        "importance_config.json",
    ]
    loaded = FactoredImportance.load(tmp_path / "f", model=net())
    assert loaded.info == INFO
    assert {name: (f.shape, f.bias) for name, f in loaded.items()} == {n: (f.shape, f.bias) for n, f in found.items()}
    assert all(torch.equal(loaded[name].inputs, f.inputs) for name, f in found.items())
    assert all(torch.equal(loaded[name].outputs, f.outputs) for name, f in found.items())
    assert all(torch.equal(loaded.diagonal[name], value) for name, value in found.diagonal.items())
    alone = FactoredImportance(factors(), {}, INFO)
    alone.save(tmp_path / "alone")
    assert not FactoredImportance.load(tmp_path / "alone").diagonal


def test_folders_of_the_two_kinds_are_told_apart(tmp_path):
    importance().save(tmp_path / "f")
    importance().to_diagonal().save(tmp_path / "d")
    with pytest.raises(FileFormatError, match="holds Kronecker factors. Load it with hf.FactoredImportance.load"):
        Importance.load(tmp_path / "f")
    with pytest.raises(FileFormatError, match=r"holds no Kronecker factors. Load it with hf.Importance.load"):
        FactoredImportance.load(tmp_path / "d")


def test_another_model(tmp_path):
    importance().save(tmp_path / "f")
    other = nn.Sequential(nn.Conv1d(2, 3, 4), nn.LayerNorm(4), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ParameterMismatchError, match=r"'0.weight' is \(3, 2, 2\), in Sequential \(3, 2, 4\)"):
        FactoredImportance.load(tmp_path / "f", model=other)
    with pytest.raises(ParameterMismatchError, match="1 name not among the trainable parameters"):
        FactoredImportance.load(tmp_path / "f", model=net()[:2])


@pytest.mark.parametrize("name", ["factors.safetensors", "importance.safetensors"])
def test_damaged_tensors(tmp_path, name):
    importance().save(tmp_path / "f")
    path = tmp_path / "f" / name
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(FileFormatError, match="damaged, truncated or edited"):
        FactoredImportance.load(tmp_path / "f")
    path.unlink()
    with pytest.raises(FileFormatError, match=f"{name} is missing"):
        FactoredImportance.load(tmp_path / "f")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 7}, "format_version is 7"),
        ({"factors": {}}, "'factors' does not list the layers"),
        ({"factors": ["0.weight"]}, "'factors' does not list the layers"),
        ({"factors": {"0.weight": {"shape": [3], "bias": None}, "3.weight": {}}}, "'shape' or 'bias' of '0.weight'"),
        ({"kind": None}, "kind is .*, expected a text|it lacks kind"),
    ],
)
def test_an_edited_description(tmp_path, change, message):
    importance().save(tmp_path / "f")
    edit(tmp_path / "f" / "importance_config.json", **change)
    with pytest.raises(FileFormatError, match=message):
        FactoredImportance.load(tmp_path / "f")


def test_an_edited_shape_is_an_error(tmp_path):
    importance().save(tmp_path / "f")
    path = tmp_path / "f" / "importance_config.json"
    described = json.loads(path.read_text())["factors"]
    described["0.weight"]["shape"] = [3, 2, 3]
    edit(path, factors=described)
    with pytest.raises(ParameterMismatchError, match="'0.weight', a weight of"):
        FactoredImportance.load(tmp_path / "f")
