import json

import pytest
import torch
from benchmarks import gpu


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    gpu.main(["--device", "cpu", "--quick", "--output", str(folder)])
    assert (folder / "gpu.md").read_text().startswith("# On a GPU")
    return json.loads((folder / "gpu.json").read_text())["parts"]


def test_the_cpu_differs_from_itself_by_nothing(parts):
    for row in parts["errors"]["rows"]:
        assert [value for name, value in row.items() if name not in ("hold", "optimizer")] == [0.0] * 4
    assert all(row["as it is"] == row["TF32 allowed"] == 0 for row in parts["products"]["rows"])


def test_what_is_foreseen_is_about_what_is_in_use(parts):
    for row in parts["memory"]["rows"]:
        assert row["foreseen, MB"] == pytest.approx(row["in use, MB"], rel=0.3)  # of 3 million weights
    for row in parts["time"]["rows"]:
        assert row["EWC, ms"] > 0


def test_tf32_is_as_it_was():
    before = torch.backends.cuda.matmul.allow_tf32
    gpu.products(torch.device("cpu"), quick=True)
    assert torch.backends.cuda.matmul.allow_tf32 == before
