import pytest
import torch
from torch import nn

from holdfast.errors import FileFormatError
from holdfast.files import write_state
from holdfast.lab.generation import judge as judge_module
from holdfast.lab.generation.judge import features, judge_net, judge_of, train_judge
from holdfast.lab.generation.measures import (
    asked_accuracy,
    frechet_distance,
    frechet_distance_of,
    real_of,
    reverse_accuracy,
)
from holdfast.lab.streams import digits


class TestFrechet:
    def test_of_independent_normals_in_closed_form(self):
        """(m1 - m2)^2 + (s1 - s2)^2 along each axis."""
        means = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, -1.0]], dtype=torch.float64)
        deviations = torch.tensor([[1.0, 2.0, 0.5], [3.0, 2.0, 0.0]], dtype=torch.float64)
        found = frechet_distance(means[0], deviations[0].square().diag(), means[1], deviations[1].square().diag())
        assert found == pytest.approx(float((means[0] - means[1]).square().sum() + 4 + 0 + 0.25))

    def test_it_does_not_depend_on_the_axes_and_is_symmetric(self):
        a, b, q = (torch.randn(4, 4, dtype=torch.float64) for _ in range(3))
        q = torch.linalg.qr(q).Q
        first, second, zero = a @ a.T, b @ b.T, torch.zeros(4, dtype=torch.float64)
        found = frechet_distance(zero, first, zero, second)
        assert found == pytest.approx(frechet_distance(zero, q @ first @ q.T, zero, q @ second @ q.T))
        assert found == pytest.approx(frechet_distance(zero, second, zero, first))
        assert frechet_distance(zero, first, zero, first) == pytest.approx(0, abs=1e-7)

    def test_of_images(self):
        images = digits().test.inputs
        judge = judge_net((1, 8, 8), 10, seed=0)
        same = frechet_distance_of(judge, images, images)
        other = frechet_distance_of(judge, images, torch.rand_like(images))
        assert same == pytest.approx(0, abs=1e-6)
        assert other > 100 * same
        assert other > 0


class TestJudge:
    def test_it_knows_real_digits(self):
        images = digits()
        judge = train_judge(images.train, epochs=8, num_classes=10)
        drawn = torch.stack([real_of(images.test, (label,)).inputs for label in range(10)])
        accuracies = asked_accuracy(judge, drawn)
        assert len(accuracies) == 10
        assert sum(accuracies) / 10 > 0.93
        wrong = asked_accuracy(judge, drawn.roll(1, 0))
        assert sum(wrong) / 10 < 0.05
        assert features(judge, drawn[0]).shape == (30, 128)

    def test_it_is_trained_once_for_a_folder(self, tmp_path, monkeypatch):
        monkeypatch.setitem(judge_module.EPOCHS, "digits", 1)
        first, accuracy = judge_of(digits(), device=torch.device("cpu"), folder=tmp_path)
        monkeypatch.delattr(judge_module, "train_judge")
        second, again = judge_of(digits(), device=torch.device("cpu"), folder=tmp_path)
        assert accuracy == again > 0.3
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))

    def test_a_file_that_is_no_judge(self, tmp_path, monkeypatch):
        monkeypatch.setitem(judge_module.EPOCHS, "digits", 1)
        path = tmp_path / "digits-1.safetensors"
        write_state(path, nn.Linear(2, 2).state_dict(), {"accuracy": 1.0})
        with pytest.raises(FileFormatError, match="is no judge of digits. Delete it, and it is trained anew"):
            judge_of(digits(), device=torch.device("cpu"), folder=tmp_path)
        path.unlink()
        judge_of(digits(), device=torch.device("cpu"), folder=tmp_path)


def test_reverse_accuracy_of_real_images_and_of_mislabelled_ones():
    images = digits()
    smallest = min(len(real_of(images.train, (label,))) for label in (0, 1))
    drawn = torch.stack([real_of(images.train, (label,)).inputs[:smallest] for label in (0, 1)])
    test = real_of(images.test, (0, 1))
    assert reverse_accuracy(drawn, test, epochs=4, num_classes=10, seed=0) > 0.95
    assert reverse_accuracy(drawn.flip(0), test, epochs=4, num_classes=10, seed=0) < 0.1
