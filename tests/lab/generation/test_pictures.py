import pytest
import torch

pytest.importorskip("matplotlib")

from holdfast.errors import FileFormatError
from holdfast.files import write_state
from holdfast.lab.generation.pictures import _laid_out, draw_samples
from holdfast.lab.generation.run import samples_path


def test_images_are_laid_out_in_rows_with_lines_between():
    images = torch.arange(6.0).view(2, 3, 1, 1, 1).expand(2, 3, 1, 2, 2)
    found = _laid_out(images)
    assert found.shape == (6, 9)
    assert found[0, ::3].tolist() == [0.0, 1.0, 2.0]
    assert found[3, ::3].tolist() == [3.0, 4.0, 5.0]
    assert found[2].isnan().all()
    assert found[:, 2::3].isnan().all()


def test_pictures_of_a_run(tmp_path):
    write_state(samples_path(tmp_path), {"samples": torch.rand(3, 3, 8, 1, 8, 8)}, {"classes": [0, 1, 2]})
    paths = draw_samples(tmp_path, title="a run")
    assert [path.name for path in paths] == ["tasks.png", "classes.png"]
    for path in paths:
        assert path.parent.name == "plots"
        assert path.read_bytes()[:4] == b"\x89PNG"


def test_without_samples(tmp_path):
    with pytest.raises(FileFormatError, match="is no readable checkpoint"):
        draw_samples(tmp_path, title="a run")
