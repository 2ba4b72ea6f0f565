import hashlib
import json
import math
from dataclasses import fields

import pytest

from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.config import RunConfig, configure
from holdfast.lab.methods import METHODS
from holdfast.lab.protocols import defaults_of
from holdfast.lab.streams.catalog import STREAMS


class TestConfigure:
    @pytest.mark.parametrize("stream", STREAMS)
    @pytest.mark.parametrize("method", METHODS)
    def test_every_stream_has_settings_for_every_method(self, stream, method):
        config = configure(stream, method)
        assert (config.stream, config.method, config.seed) == (stream, method, 0)
        assert (config.strength is None) == (not METHODS[method].holds_weights)

    def test_the_protocol_of_permuted_mnist_is_the_published_one(self):
        for method, strength, lr in (
            ("none", None, 0.2),
            ("ewc-fisher", 15.0, 0.2),
            ("ewc-mas", 15.0, 0.2),
            ("ewc-si", 0.1, 0.02),
            ("ewc-signal", 1.0, 0.2),
            ("wva-signal", 250.0, 0.2),
        ):
            config = configure("permuted-mnist", method)
            assert (config.strength, config.lr) == (strength, lr)
            assert (config.hidden, config.slope, config.optimizer) == ((300, 150), 0.2, "sgd")
            assert (config.batch_size, config.epochs, config.importance_data) == (100, 4, "validation")
        assert configure("permuted-mnist", "ewc-si").si_variant == "kutalev"
        mas = configure("permuted-mnist", "ewc-mas")
        assert (mas.mas_output, mas.mas_batched) == ("softmax", True)

    def test_yours_stand_above_the_protocol_and_none_leaves_it(self):
        config = configure("permuted-digits", "ewc-fisher", strength=3, lr=None, seed=4, hidden=[7, 8])
        assert (config.strength, config.seed, config.hidden) == (3.0, 4, (7, 8))
        assert config.lr == defaults_of("permuted-digits", "ewc-fisher")["lr"]

    def test_a_budget_takes_the_place_of_the_strength(self):
        config = configure("permuted-digits", "ewc-fisher", budget=0.1)
        assert (config.strength, config.budget) == (None, 0.1)
        assert configure("permuted-digits", "ewc-kfac").pull_every == 5
        assert configure("permuted-digits", "ewc-kfac", budget=0.1).pull_every == 1


class TestNames:
    def test_the_folder_of_a_run(self):
        config = configure("split-digits", "wva-si", seed=12)
        assert config.name == f"split-digits-wva-si-12-{config.hash}"
        assert len(config.hash) == 8
        assert set(config.hash) <= set("0123456789abcdef")

    def test_every_setting_counts(self):
        config = configure("permuted-digits", "ewc-fisher")
        others = {
            "seed": 1,
            "scenario": "class",
            "num_tasks": 3,
            "fraction": 0.5,
            "net": "attention",
            "hidden": (3,),
            "slope": 0.0,
            "optimizer": "adam",
            "lr": 0.7,
            "weight_decay": 0.1,
            "schedule": "cosine",
            "fresh_optimizer": False,
            "epochs": 7,
            "iterations": 8,
            "batch_size": 9,
            "clip": 1.0,
            "mask": "all",
            "strength": 2.5,
            "budget": 0.5,
            "replay": "exact",
            "generator": "cvae",
            "generator_units": 10,
            "generator_latent": 10,
            "generator_lr": 0.1,
            "new_share": 0.5,
            "temperature": 3.0,
            "hold": "ewc-si",
            "hold_generator": "wva",
            "generator_strength": 2.0,
            "pull": "penalty",
            "pull_every": 4,
            "attenuation": "exponential",
            "attenuate": "gradients",
            "accumulate": "mean",
            "weighting": "examples",
            "fisher": "sampled",
            "mas_output": "softmax",
            "mas_batched": True,
            "signal_bias": "output",
            "damping": 0.2,
            "si_variant": "kutalev",
            "si_gradient": "after",
            "importance_data": "validation",
            "importance_examples": 10,
            "buffer": "balanced",
            "buffer_size": 7,
            "der_alpha": 0.25,
            "der_beta": 0.25,
            "imm": "mode",
            "l2_transfer": 0.25,
            "hat_scale": 25.0,
            "hat_sparsity": 0.25,
            "sfa_share": 0.25,
            "sfa_period": 0.125,
        }
        assert set(others) == {entry.name for entry in fields(RunConfig)} - {"stream", "method"}
        settings = [configure("permuted-digits", "ewc-signal", **{name: value}) for name, value in others.items()]
        assert len({each.hash for each in (*settings, config)}) == len(others) + 1

    def test_a_setting_at_its_default_does_not_count_so_that_new_settings_leave_old_names(self):
        config = RunConfig(stream="permuted-digits", method="none")
        chosen = {"stream": "permuted-digits", "method": "none"}
        assert config.hash == hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]

    def test_numbers_that_are_equal_make_one_name(self):
        assert (
            configure("permuted-digits", "l2", strength=15).hash
            == configure("permuted-digits", "l2", strength=15.0).hash
        )
        assert RunConfig(stream="a", method="none", lr=1) == RunConfig(stream="a", method="none", lr=1.0)

    def test_the_order_of_settings_does_not_count(self):
        content = configure("permuted-digits", "ewc-fisher").to_dict()
        assert RunConfig.from_dict(dict(reversed(content.items()))).hash == RunConfig.from_dict(content).hash


class TestJson:
    @pytest.mark.parametrize("strength", [15.0, math.inf])
    def test_there_and_back(self, strength):
        config = configure("permuted-digits", "ewc-fisher", strength=strength, hidden=(5, 6), accumulate="decayed:0.5")
        again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert again.hash == config.hash
        assert isinstance(again.hidden, tuple)

    def test_a_setting_of_another_version_is_an_error(self):
        content = {**configure("permuted-digits", "none").to_dict(), "elasticity": 3}
        with pytest.raises(UnknownNameError, match="unknown setting 'elasticity'"):
            RunConfig.from_dict(content)


class TestErrors:
    @pytest.mark.parametrize(
        ("stream", "method", "settings", "message"),
        [
            ("permuted-digit", "none", {}, r"unknown stream 'permuted-digit'. Did you mean 'permuted-digits'\?"),
            ("permuted-digits", "ewc-fish", {}, r"unknown method 'ewc-fish'. Did you mean 'ewc-fisher'\?"),
            ("permuted-digits", "none", {"epoch": 3}, r"unknown setting 'epoch'. Did you mean 'epochs'\?"),
            ("permuted-digits", "none", {"optimizer": "adamm"}, r"unknown optimizer 'adamm'. Did you mean 'adamw?'\?"),
            ("permuted-digits", "none", {"schedule": "cosin"}, r"unknown schedule 'cosin'. Did you mean 'cosine'\?"),
            ("permuted-digits", "none", {"scenario": "klass"}, r"unknown scenario 'klass'. Did you mean 'class'\?"),
            ("permuted-digits", "none", {"mask": "saw"}, r"unknown mask 'saw'. .*Known: all, seen, task"),
            ("permuted-digits", "none", {"buffer": "resevoir"}, r"unknown buffer .* Did you mean 'reservoir'\?"),
            ("permuted-digits", "none", {"imm": "mod"}, r"unknown imm 'mod'. Did you mean 'mode'\?"),
            ("permuted-digits", "none", {"pull": "implict"}, r"unknown pull 'implict'. Did you mean 'implicit'\?"),
            (
                "permuted-digits",
                "none",
                {"fisher": 3},
                r"unknown fisher '3'. Known: batched, empirical, exact, sampled.",
            ),
        ],
    )
    def test_the_nearest_name_is_offered(self, stream, method, settings, message):
        with pytest.raises(UnknownNameError, match=message):
            configure(stream, method, **settings)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"lr": -0.1}, r"lr is -0.1; expected a number from 0 to 1e\+06."),
            ({"lr": math.nan}, r"lr is nan; expected a number"),
            ({"lr": "fast"}, r"lr is 'fast'; expected a number"),
            ({"strength": -1.0}, r"strength is -1.0; expected a number from 0 to inf."),
            ({"budget": 0.0}, r"budget is 0.0; expected a number from 1e-12 to inf."),
            ({"fraction": 1.5}, r"fraction is 1.5; expected a number from 0 to 1."),
            ({"epochs": 0}, r"epochs is 0; expected a whole number from 1 to 1e\+06."),
            ({"batch_size": 2.5}, r"batch_size is 2.5; expected a whole number from 1"),
            ({"iterations": 0}, r"iterations is 0; expected a whole number from 1"),
            ({"num_tasks": 0}, r"num_tasks is 0; expected a whole number from 1 to 1000."),
            ({"seed": -1}, r"seed is -1; expected a whole number from 0"),
            ({"importance_examples": 0}, r"importance_examples is 0; expected a whole number"),
            ({"buffer_size": 0}, r"buffer_size is 0; expected a whole number from 1"),
            ({"der_alpha": -1.0}, r"der_alpha is -1.0; expected a number from 0"),
            ({"temperature": 0.0}, r"temperature is 0.0; expected a number from 0.001 to 1000."),
            ({"l2_transfer": -1.0}, r"l2_transfer is -1.0; expected a number from 0"),
            ({"hat_scale": 0.5}, r"hat_scale is 0.5; expected a number from 1"),
            ({"hat_sparsity": -1.0}, r"hat_sparsity is -1.0; expected a number from 0"),
            ({"sfa_share": 1.5}, r"sfa_share is 1.5; expected a number from 0 to 1."),
            ({"sfa_period": -0.5}, r"sfa_period is -0.5; expected a number from 0 to 1."),
            ({"hidden": ()}, r"hidden is \(\); expected the units of each hidden layer, such as \(300, 150\)."),
            ({"hidden": (10, 0)}, r"hidden is \(10, 0\); expected the units"),
            ({"hidden": ("ten",)}, r"hidden is \('ten',\); expected the units"),
        ],
    )
    def test_values_out_of_range(self, settings, message):
        with pytest.raises(OptionError, match=message):
            configure("permuted-digits", "ewc-fisher", **settings)

    def test_no_value_where_one_is_needed(self):
        with pytest.raises(OptionError, match="epochs is None; expected a whole number"):
            RunConfig(stream="permuted-digits", method="none", epochs=None)
        with pytest.raises(UnknownNameError, match="unknown optimizer 'None'"):
            RunConfig(stream="permuted-digits", method="none", optimizer=None)

    @pytest.mark.parametrize("settings", [{}, {"strength": 1.0, "budget": 1.0}])
    def test_either_a_strength_or_a_budget(self, settings):
        with pytest.raises(OptionError, match="'ewc-fisher' needs a strength or a budget, one of them; found strength"):
            RunConfig(stream="permuted-digits", method="ewc-fisher", **settings)
        RunConfig(stream="permuted-digits", method="ewc-fisher", strength=1.0)
        RunConfig(stream="permuted-digits", method="none", **settings)
