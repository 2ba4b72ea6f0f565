from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import holdfast as hf
from holdfast.errors import BatchError, NotFiniteError, OptionError, StateError, UnknownNameError

KINDS = {
    "means": {"kind": "means"},
    "slda": {"kind": "slda"},
    "ridge": {"kind": "ridge"},
    "random features": {"kind": "ridge", "projection": 40, "seed": 3},
    "given ridge": {"kind": "ridge", "projection": 40, "ridge": 0.3},
    "random features for slda": {"kind": "slda", "projection": 40, "shrinkage": 0.1},
}
EVERY_KIND = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


def examples(n: int = 200, *, width: int = 6, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, width, generator=generator, dtype=torch.float64) + 1
    labels = (features @ torch.randn(width, classes, generator=generator, dtype=torch.float64)).argmax(1)
    return features, 10 * labels  # labels are names, and no column numbers


def of_class(c: int) -> Tensor:
    features, labels = examples()
    return features[labels == c]


def same(one: hf.AnalyticHead, other: hf.AnalyticHead, *, rtol: float = 1e-6) -> None:
    """The two have the same scores on new examples, to so much of the largest."""
    asked = examples(seed=1)[0]
    found, expected = one(asked), other(asked)
    assert one.classes == other.classes
    assert one.counts == other.counts
    assert (found - expected).abs().max() <= rtol * expected.abs().max()


def joint(options) -> hf.AnalyticHead:
    return hf.AnalyticHead(**options).fit(*examples())


class TestTheSameHeadHoweverTheDataCome:
    @EVERY_KIND
    @given(data=st.data())
    def test_in_any_order_and_in_any_parts(self, options, data):
        features, labels = examples()
        order = torch.tensor(data.draw(st.permutations(range(len(features)))))
        cuts = data.draw(st.lists(st.integers(0, len(features)), max_size=6).map(sorted))
        head = hf.AnalyticHead(**options)
        for part in order.tensor_split(cuts):
            head.fit(features[part], labels[part])
        same(head, joint(options), rtol=1e-9)

    @EVERY_KIND
    @pytest.mark.parametrize("order", [(0, 10, 20, 30, 40), (40, 20, 0, 30, 10)])
    def test_class_after_class(self, options, order):
        head = hf.AnalyticHead(**options)
        for number, c in enumerate(order):
            head.fit(of_class(c), torch.full((len(of_class(c)),), c))
            assert head.classes == tuple(sorted(order[: number + 1]))
            assert head(examples()[0]).shape == (200, number + 1)  # asked in between, it learns on
        same(head, joint(options), rtol=1e-9)

    @EVERY_KIND
    @pytest.mark.parametrize("keep_class_sums", [False, True])
    def test_of_several_processes_each_with_its_own_data(self, options, keep_class_sums):
        features, labels = examples()
        options = {**options, "keep_class_sums": keep_class_sums}
        heads = [hf.AnalyticHead(**options).fit(features[k::3], labels[k::3]) for k in range(3)]
        before = copy.deepcopy(heads[1].state())
        total = hf.AnalyticHead(**options)
        for head in heads:
            assert total.merge(head) is total
        same(total, joint(options), rtol=1e-9)
        total.fit(features[:9], labels[:9])
        assert all(torch.equal(before[0][name], value) for name, value in heads[1].state()[0].items())

    @EVERY_KIND
    def test_merged_with_itself_every_example_counts_twice(self, options):
        head, twice = joint(options), joint(options).fit(*examples())
        same(head.merge(head), twice, rtol=1e-9)

    @EVERY_KIND
    @pytest.mark.parametrize("c", [0, 20, 40])
    def test_without_a_class_by_its_own_sums_to_the_bit(self, options, c):
        features, labels = examples()
        options = {**options, "keep_class_sums": True}
        never = hf.AnalyticHead(**options).fit(features[labels != c], labels[labels != c])
        head = hf.AnalyticHead(**options)
        for k in (40, 10, 0, 30, 20):
            head.fit(of_class(k), torch.full((len(of_class(k)),), k))
        head.forget(c)
        same(head, never, rtol=1e-9)
        again = hf.AnalyticHead(**options)
        for k in (0, 10, 20, 30, 40):
            if k != c:
                again.fit(of_class(k), torch.full((len(of_class(k)),), k))
        assert torch.equal(head(features), again(features))

    @EVERY_KIND
    @pytest.mark.parametrize("c", [0, 20, 40])
    def test_without_a_class_by_its_features(self, options, c):
        features, labels = examples()
        never = hf.AnalyticHead(**options).fit(features[labels != c], labels[labels != c])
        again = {} if options["kind"] == "means" else {"features": of_class(c).flip(0)}
        head = joint(options).forget(c, **again)
        same(head, never)
        same(head.fit(of_class(c), torch.full((len(of_class(c)),), c)), joint(options))

    @EVERY_KIND
    def test_features_that_float32_rounded_anew_are_taken_back(self, options):
        features, labels = examples()
        again = {} if options["kind"] == "means" else {"features": of_class(10).float()}
        never = hf.AnalyticHead(**options).fit(features[labels != 10], labels[labels != 10])
        same(joint(options).forget(10, **again), never, rtol=1e-4)

    @EVERY_KIND
    def test_forgotten_to_the_last_it_is_empty_and_begins_anew(self, options):
        head = joint(options)
        for c in head.classes:
            head.forget(c, **({} if options["kind"] == "means" else {"features": of_class(c)}))
        assert head.classes == ()
        with pytest.raises(StateError, match="no class was added yet. Call fit"):
            head(examples()[0])
        same(head.fit(*examples()), joint(options), rtol=1e-12)


class TestWhatItGives:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
    def test_scores_are_float32_or_wider(self, dtype):
        features = (10 * examples()[0]).to(dtype)
        head = hf.AnalyticHead("slda").fit(features, examples()[1])
        assert head(features).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert head.solution.weight.dtype == torch.float64
        assert head(features[:0]).shape == (0, 5)
        labels = torch.tensor(head.classes)
        assert torch.equal(head.predict(features), labels[head(features).argmax(1)])

    def test_labels_of_any_whole_numbers(self):
        features = examples()[0]
        labels = torch.arange(200, dtype=torch.int16) % 3 - 1
        head = hf.AnalyticHead("means").fit(features, labels)
        assert head.counts == {-1: 67, 0: 67, 1: 66}

    def test_its_memory_is_the_sums(self):
        C, M = 5, 40
        for options, floats in (
            ({"kind": "means"}, C * 6),
            ({"projection": M}, M * M + C * M),
            ({"projection": M, "keep_class_sums": True}, C * M * M + C * M),
        ):
            assert joint(options).nbytes == 8 * (floats + C)

    def test_it_is_solved_when_it_is_asked(self):
        head = joint({})
        assert head.solution is head.solution
        before = head.solution
        head.fit(*examples(seed=2))
        assert head.solution is not before
        assert head.fit(examples()[0][:0], examples()[1][:0]).counts == head.counts

    def test_the_features_given_are_left_alone_and_many_rows_are_taken_in_parts(self):
        features = torch.randn(10_000, 3, requires_grad=True)
        labels = torch.arange(10_000) % 4
        whole, parts = hf.AnalyticHead(), hf.AnalyticHead()
        whole.fit(features, labels)
        for one, own in zip(features.split(900), labels.split(900)):
            parts.fit(one, own)
        assert not whole(features).requires_grad
        assert torch.allclose(whole(features), parts(features), atol=1e-12)

    def test_what_it_says_of_itself(self):
        assert repr(hf.AnalyticHead("slda")) == "AnalyticHead(slda, no examples yet, 0 examples)"
        head = joint({"projection": 40})
        assert repr(head) == "AnalyticHead(ridge, 40 random features, width 6, 5 classes, 200 examples)"
        assert (head.width, str(head.device)) == (6, "cpu")
        assert head.to("cpu") is head

    @EVERY_KIND
    def test_a_copy_goes_its_own_way(self, options):
        head = joint(options)
        copied = copy.deepcopy(head).fit(*examples(seed=2))
        same(head, joint(options), rtol=1e-12)
        assert sum(copied.counts.values()) == 400

    @pytest.mark.parametrize("default", [torch.float16, torch.float64], ids=str)
    @EVERY_KIND
    def test_the_default_dtype_does_not_matter(self, options, default):
        features, labels = examples()
        expected = hf.AnalyticHead(**options).fit(features.float(), labels)(features.float())
        torch.set_default_dtype(default)
        try:
            found = hf.AnalyticHead(**options).fit(features.float(), labels)(features.float())
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(found, expected)

    def test_state_and_back(self):
        head = joint({"projection": 40, "seed": 3})
        twin = hf.AnalyticHead.from_state(*head.state(), where="here")
        assert torch.equal(twin(examples()[0]), head(examples()[0]))
        same(twin.fit(*examples(seed=2)), head.fit(*examples(seed=2)), rtol=1e-12)


class TestWhatItRefuses:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"kind": "rigde"}, UnknownNameError, r"unknown kind 'rigde'. Did you mean 'ridge'\?"),
            ({"projection": 0}, OptionError, "projection=0, expected a whole number >= 1, or None for the features"),
            ({"seed": -1}, OptionError, "seed=-1, expected a whole number >= 0"),
            ({"ridge": 0}, OptionError, 'AnalyticHead: ridge=0, expected a number above 0, or "gcv".'),
            ({"ridge": "loo"}, OptionError, "ridge='loo', expected a number above 0"),
            ({"kind": "slda", "shrinkage": 2}, OptionError, "shrinkage=2, expected a number from 0 to 1"),
            ({"shrinkage": 0.5}, OptionError, "shrinkage has no effect with kind='ridge'; it belongs to kind='slda'"),
            ({"kind": "means", "ridge": 1.0}, OptionError, "ridge has no effect with kind='means'; it belongs to"),
        ],
    )  # fmt: skip
    def test_options(self, options, error, message):
        with pytest.raises(error, match=message):
            hf.AnalyticHead(**options)

    @pytest.mark.parametrize(
        ("features", "labels", "error", "message"),
        [
            (torch.ones(3, 5), torch.zeros(3).long(), BatchError, "found 5 features an example; this head was given 6"),
            (torch.ones(3, 6), torch.zeros(3), BatchError, "the labels are torch.float32; expected whole numbers"),
            (torch.ones(3, 6), torch.ones(3) > 0, BatchError, "the labels are torch.bool; expected whole numbers"),
            (torch.ones(3, 6), torch.zeros(2).long(), BatchError, r"found labels \[2\]; expected a tensor of"),
            (torch.ones(3, 6), [0, 0, 0], BatchError, r"found labels list; expected a tensor of shape \[3\]"),
            (torch.ones(3, 2, 3), torch.zeros(3).long(), BatchError, r"found features torch.float32 \[3, 2, 3\]"),
            (torch.ones(3, 6) * 1j, torch.zeros(3).long(), BatchError, r"found features torch.complex64 \[3, 6\]"),
            ([[1.0]], torch.zeros(1).long(), BatchError, "found features <class 'list'>; expected"),
            (torch.full((3, 6), torch.nan), torch.zeros(3).long(), NotFiniteError, "18 of 18 features are NaN"),
            (torch.full((3, 6), torch.inf), torch.zeros(3).long(), NotFiniteError, "18 of 18 features are NaN"),
        ],
    )  # fmt: skip
    def test_examples_and_nothing_is_added(self, features, labels, error, message):
        head = joint({})
        before = head.solution
        with pytest.raises(error, match=message) as caught:
            head.fit(features, labels)
        assert "\n" not in str(caught.value)
        assert head.solution is before

    def test_scores_of_another_width(self):
        with pytest.raises(BatchError, match="AnalyticHead.scores: found 5 features an example; this head was given 6"):
            joint({})(torch.ones(3, 5))

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"kind": "slda"}, "the two differ in kind 'ridge' and 'slda'. Make both with the same."),
            ({"projection": 40, "seed": 1}, "the two differ in projection None and 40, seed 0 and 1."),
            ({"keep_class_sums": True}, "the two differ in keep_class_sums False and True."),
            ({"ridge": 1.0}, "the two differ in ridge 'gcv' and 1.0."),
        ],
    )
    def test_merging_what_differs(self, other, message):
        with pytest.raises(OptionError, match=message):
            joint({}).merge(joint(other))

    def test_merging_another_width_or_another_thing(self):
        narrow = hf.AnalyticHead().fit(torch.rand(4, 2), torch.arange(4))
        with pytest.raises(OptionError, match="the two differ in width 6 and 2"):
            joint({}).merge(narrow)
        with pytest.raises(OptionError, match="found a dict; expected an AnalyticHead"):
            joint({}).merge({})  # pyright: ignore[reportArgumentType]

    def test_forgetting_a_class_that_was_never_added(self):
        with pytest.raises(OptionError, match="class 7 was never added; found 0, 10, 20, 30, 40. Name one of them."):
            joint({}).forget(7)
        with pytest.raises(OptionError, match="class 7 was never added; found none yet."):
            hf.AnalyticHead().forget(7)
        many = hf.AnalyticHead("means").fit(torch.rand(12, 2), torch.arange(12))
        with pytest.raises(OptionError, match="found 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more. Name one"):
            many.forget(12)

    def test_forgetting_without_features_or_with_needless_ones(self):
        with pytest.raises(
            OptionError, match=r"class 10 is pooled with the others. Give the features .*keep_class_sums=T"
        ):
            joint({}).forget(10)
        for options in ({"kind": "means"}, {"keep_class_sums": True}):
            with pytest.raises(OptionError, match="the sums of class 10 are kept, and features have no effect. Leave"):
                joint(options).forget(10, features=of_class(10))

    @pytest.mark.parametrize("options", [{}, {"kind": "slda"}, {"projection": 40}])
    def test_forgetting_features_that_were_never_added(self, options):
        right = of_class(10)
        n = len(right)
        for wrong, message in (
            (right[1:], f"class 10: found {n - 1} features; {n} were added. Give each of them once more"),
            (torch.cat([right, right[:1]]), f"class 10: found {n + 1} features; {n} were added"),
            (right + 0.01, "these are not the features that were added: their sum is another by"),
            (of_class(20)[:1].expand(n, 6), "these are not the features that were added: their sum"),
        ):
            head = joint(options)
            before = copy.deepcopy(head)
            with pytest.raises(OptionError, match=message):
                head.forget(10, features=wrong)
            assert torch.equal(head(right), before(right))

    @pytest.mark.parametrize("only", [False, True])
    def test_features_of_the_right_sum_leave_a_negative_pivot(self, only):
        """Further from their mean than those that were added, so that less than nothing is left for the others."""
        head = joint({})
        right, mean = of_class(10), of_class(10).mean(0)
        if only:
            head = hf.AnalyticHead().fit(right, torch.full((len(right),), 10))
        away = mean + (0.5 if only else 30) * (right - mean)
        with pytest.raises(OptionError, match="without their second moments a negative pivot is left, or something"):
            head.forget(10, features=away)
        head.forget(10, features=right)

    def test_what_cannot_be_solved(self):
        one_each = hf.AnalyticHead("slda").fit(torch.rand(3, 4), torch.arange(3))
        with pytest.raises(
            StateError, match='no class has examples that differ.*Fit more examples, or use kind="means"'
        ):
            one_each(torch.rand(1, 4))
        few = hf.AnalyticHead("slda", shrinkage=0).fit(torch.rand(4, 9), torch.arange(4) % 2)
        with pytest.raises(
            StateError, match="with shrinkage=0 the covariance of 4 examples has directions without sca"
        ):
            few(torch.rand(1, 9))
        tiny = hf.AnalyticHead(ridge=1e-30).fit(torch.rand(4, 9), torch.arange(4) % 2)
        with pytest.raises(
            StateError, match='ridge=1e-30 is lost in the rounding .* Give a larger one, or ridge="gcv"'
        ):
            tiny(torch.rand(1, 9))
        dead = hf.AnalyticHead().fit(torch.zeros(4, 9), torch.arange(4))
        with pytest.raises(StateError, match="all features are zero. Look at the backbone"):
            dead(torch.rand(1, 9))


@pytest.mark.gpu
@EVERY_KIND
def test_on_a_device(options):
    features, labels = examples()
    head = hf.AnalyticHead(**options, device="cuda").fit(features, labels)
    same(head, joint(options), rtol=1e-9)
    assert head(features.float().cuda()).device.type == "cuda"
    assert hf.AnalyticHead(**options).merge(head).device.type == "cpu"
    same(head.to("cpu"), joint(options), rtol=1e-9)
    again = {} if options["kind"] == "means" else {"features": of_class(10).cuda()}
    same(joint(options).to("cuda").forget(10, **again), joint(options).forget(10, **again))
