import copy
import hashlib
import json
import math
import pickle
from dataclasses import fields

import pytest

from holdfast.errors import OptionError, UnknownNameError
from holdfast.lab.config import RunConfig, RunSettings, configure
from holdfast.lab.configured import folder_name
from holdfast.lab.methods import METHODS
from holdfast.lab.protocols import defaults_of
from holdfast.lab.registry import all_options
from holdfast.lab.streams.catalog import STREAMS
from holdfast.lab.training import NETS

OTHERS = {
    "seed": 1,
    "scenario": "class",
    "num_tasks": 3,
    "fraction": 0.5,
    "classes_per_task": 5,
    "side": 16,
    "colors": "gray",
    "unreadable": "skip",
    "augment": ("flip",),
    "net": "attention",
    "batch_norm": True,
    "width": 8,
    "stage_blocks": 2,
    "patch": 2,
    "hidden_width": 64,
    "depth": 2,
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
    "signal_bias": "activation",
    "damping": 0.2,
    "si_variant": "kutalev",
    "si_gradient": "after",
    "importance_data": "validation",
    "importance_examples": 10,
    "buffer": "balanced",
    "buffer_size": 7,
    "der_alpha": 0.25,
    "der_beta": 0.25,
    "imm": "mean",
    "l2_transfer": 0.25,
    "pack_prune": 0.25,
    "pack_retrain": 0.125,
    "path_modules": 5,
    "path_active": 2,
    "path_population": 4,
    "path_generations": 3,
    "lfl_weight": 0.25,
    "hat_scale": 25.0,
    "hat_sparsity": 0.25,
    "sfa_share": 0.75,
    "sfa_period": 0.125,
    "adapt": True,
    "shrinkage": 0.25,
    "projection": 50,
    "ridge": 2.5,
}
"""A value of every setting that no protocol has."""


def host(setting: str) -> tuple[str, str]:
    """A stream and a method that a setting belongs to."""
    stream = "split-digits" if setting in all_options(STREAMS["split-digits"], {}) else "permuted-digits"
    return stream, next((name for name, method in METHODS.items() if setting in all_options(method, {})), "none")


class TestConfigure:
    @pytest.mark.parametrize("stream", [name for name, stream in STREAMS.items() if stream.data])
    @pytest.mark.parametrize("method", METHODS)
    def test_every_stream_of_ours_has_settings_for_every_method(self, stream, method):
        config = configure(stream, method)
        assert (config.stream, config.method, config.seed) == (stream, method, 0)
        assert (config.strength is None) == (not METHODS[method].holds_weights)

    @pytest.mark.parametrize("method", METHODS)
    def test_where_no_protocol_has_a_strength_a_budget_is_kept(self, method):
        if METHODS[method].mechanism == "wva":
            with pytest.raises(OptionError, match=f"method '{method}' needs a strength; found none. Give one"):
                configure("split", method)
            return
        config = configure("split", method)
        assert config.budget == (0.05 if METHODS[method].holds_weights else None)
        assert config.strength is None

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


_ALL = {own.name for own in fields(RunSettings)} | RunConfig.known_options()


class TestNames:
    def test_the_folder_of_a_run(self):
        config = configure("split-digits", "wva-si", seed=12)
        assert config.name == f"split-digits-wva-si-12-{config.hash}"
        assert len(config.hash) == 8
        assert set(config.hash) <= set("0123456789abcdef")

    @pytest.mark.parametrize("name", sorted(_ALL - {"stream", "method", "data"}))
    def test_every_setting_counts(self, name):
        stream, method = host(name)
        besides = {"budget": {"budget": 0.25}, "hold": {"hold": "ewc-mas", "strength": 1.0}}.get(name, {})
        net = next((each for each, entry in NETS.items() if name in all_options(entry, {})), None)
        config = configure(stream, method, net=net, **besides)
        assert config.changed(**{name: OTHERS[name]}).hash != config.hash

    def test_a_setting_at_its_default_does_not_count_so_that_new_settings_leave_old_names(self):
        config = RunConfig(stream="permuted-digits", method="none", options={})
        chosen = {"stream": "permuted-digits", "method": "none"}
        assert config.hash == hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]

    @pytest.mark.parametrize(
        ("stream", "method", "settings", "name"),
        [
            ("permuted-digits", "none", {}, "permuted-digits-none-0-af2074ed"),
            ("permuted-digits", "joint", {}, "permuted-digits-joint-0-c29dc8d1"),
            ("permuted-digits", "ewc-fisher", {"budget": 0.1}, "permuted-digits-ewc-fisher-0-ca4c75d6"),
            ("permuted-digits", "ewc-fisher", {"fisher": "sampled"}, "permuted-digits-ewc-fisher-0-2aafe6c4"),
            ("split-digits", "wva-fisher", {"seed": 3, "epochs": 2, "lr": 0.01}, "split-digits-wva-fisher-3-2c4b1b2d"),
            ("permuted-mnist", "ewc-si", {}, "permuted-mnist-ewc-si-0-84b0f7ab"),
            ("permuted-mnist", "ewc-kfac", {}, "permuted-mnist-ewc-kfac-0-d4ae4ace"),
            ("rotated-mnist", "imm", {"imm": "mode"}, "rotated-mnist-imm-0-c0cbf271"),
            ("split-mnist", "dgr", {}, "split-mnist-dgr-0-7e1dfeaa"),
            ("split-mnist", "hat", {}, "split-mnist-hat-0-e33bd980"),
        ],
    )
    def test_names_of_earlier_versions_stay(self, stream, method, settings, name):
        assert configure(stream, method, **settings).name == name

    def test_of_data_their_content_counts_and_not_their_place(self):
        named = RunConfig(stream="split", method="none", data="digits", fingerprint="0123456789abcdef", options={})
        elsewhere = named.changed(data="copies/digits.npz")
        assert elsewhere.name == named.name
        assert elsewhere.changed(fingerprint="fedcba9876543210").name != named.name

    def test_what_a_file_system_refuses_stands_in_no_name(self):
        assert folder_name("package.module:Class") == "package.module_Class"

    def test_numbers_that_are_equal_make_one_name(self):
        assert (
            configure("permuted-digits", "l2", strength=15).hash
            == configure("permuted-digits", "l2", strength=15.0).hash
        )
        one, other = (RunConfig(stream="split-digits", method="none", lr=lr, options={}) for lr in (1, 1.0))
        assert one == other
        assert hash(one) == hash(other)

    def test_the_order_of_settings_does_not_count(self):
        content = configure("permuted-digits", "ewc-fisher").to_dict()
        assert RunConfig.from_dict(dict(reversed(content.items()))).hash == RunConfig.from_dict(content).hash


class TestJson:
    def test_in_the_order_of_pages(self):
        names = list(configure("permuted-digits", "ewc-fisher").to_dict())
        told = ["strength", "pull", "fisher", "stream", "method", "num_tasks", "fraction", "net", "hidden", "lr"]
        assert [name for name in names if name in told] == told

    @pytest.mark.parametrize("strength", [15.0, math.inf])
    def test_there_and_back(self, strength):
        config = configure("permuted-digits", "ewc-fisher", strength=strength, hidden=(5, 6), accumulate="decayed:0.5")
        again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert again.hash == config.hash
        assert isinstance(again.hidden, tuple)

    def test_an_unknown_setting_is_an_error(self):
        content = {**configure("permuted-digits", "none").to_dict(), "epoch": 3}
        with pytest.raises(UnknownNameError, match=r"unknown setting 'epoch'. Did you mean 'epochs'\?"):
            RunConfig.from_dict(content)

    def test_what_earlier_versions_wrote_of_other_methods_is_passed_over(self):
        config = configure("permuted-digits", "none")
        earlier = {**config.to_dict(), "strength": None, "buffer_size": 500, "mas_output": "softmax"}
        assert RunConfig.from_dict(earlier) == config


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
            ("permuted-digits", "er", {"buffer": "resevoir"}, r"unknown buffer .* Did you mean 'reservoir'\?"),
            ("permuted-digits", "imm", {"imm": "mod"}, r"unknown imm 'mod'. Did you mean 'mode'\?"),
            ("permuted-digits", "ewc-mas", {"pull": "implict"}, r"unknown pull 'implict'. Did you mean 'implicit'\?"),
            (
                "permuted-digits",
                "ewc-fisher",
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
        _, method = host(next(iter(settings)))
        with pytest.raises(OptionError, match=message):
            configure("permuted-digits", method, **settings)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"mas_batched": 1}, "mas_batched is 1; expected yes or no."),
            ({"accumulate": 3}, "accumulate is 3; expected a text."),
            ({"accumulate": "summ"}, "accumulate is 'summ'; expected sum, mean, max, per_task or decayed:GAMMA."),
            ({"net": 3}, "net is 3; expected a name. Register it, or give 'module:name'."),
            ({"fresh_optimizer": "yes"}, "fresh_optimizer is 'yes'; expected yes or no."),
        ],
    )
    def test_values_of_another_type(self, settings, message):
        with pytest.raises(OptionError, match=message):
            configure("permuted-digits", "ewc-mas", **settings)

    def test_no_value_where_one_is_needed(self):
        with pytest.raises(OptionError, match="epochs is None; expected a whole number"):
            RunConfig(stream="permuted-digits", method="none", epochs=None, options={})
        with pytest.raises(UnknownNameError, match="unknown optimizer 'None'"):
            RunConfig(stream="permuted-digits", method="none", optimizer=None, options={})

    @pytest.mark.parametrize(
        ("settings", "found"),
        [({}, "found none. Give one"), ({"strength": 1.0, "budget": 1.0}, "found strength 1.0 and budget 1.0")],
    )
    def test_either_a_strength_or_a_budget(self, settings, found):
        with pytest.raises(OptionError, match=f"'ewc-fisher' needs a strength or a budget, one of them; {found}"):
            RunConfig(stream="permuted-digits", method="ewc-fisher", options=settings)
        RunConfig(stream="permuted-digits", method="ewc-fisher", options={"strength": 1.0})

    def test_wva_needs_a_strength(self):
        with pytest.raises(OptionError, match="'wva-si' needs a strength; found none. Give one; `holdfast sweep`"):
            RunConfig(stream="permuted-digits", method="wva-si", options={})


class TestWhatBelongsElsewhere:
    @pytest.mark.parametrize(
        ("method", "settings", "message"),
        [
            (
                "wva-fisher",
                {"budget": 0.1},
                "budget has no effect with stream permuted-digits, net mlp and wva-fisher; it belongs to ewc-fisher, "
                "ewc-mas, ewc-si, ewc-signal, ewc-taylor, ewc-kfac and others.",
            ),
            ("none", {"strength": 1.0}, "strength has no effect with .* and none; it belongs to ewc-fisher, "),
            ("ewc-mas", {"fisher": "sampled"}, "fisher has no effect with .* ewc-mas; it belongs to ewc-fisher, "),
            ("none", {"net": "convolution", "hidden": (8,)}, "hidden has no effect with .*; it belongs to mlp."),
            ("none", {"classes_per_task": 1}, "classes_per_task has no effect with .*; it belongs to split-digits, "),
            (
                "dgr",
                {"generator": "wgan-gp", "generator_units": 3},
                "generator_units has no effect with .*; it belongs to vae, cvae.",
            ),
            ("dgr", {"strength": 1.0}, "strength has no effect with .* and dgr; it belongs to ewc-fisher, "),
        ],
    )
    def test_it_is_refused(self, method, settings, message):
        with pytest.raises(OptionError, match=message):
            configure("permuted-digits", method, **settings)
        with pytest.raises(OptionError, match=message):
            configure("permuted-digits", method).changed(**settings)

    def test_settings_of_the_protocol_that_are_not_the_runs_are_left_out(self):
        assert "hidden" in defaults_of("permuted-digits", "none")
        assert "hidden" not in configure("permuted-digits", "none", net="attention").to_dict()

    def test_what_is_held_besides_brings_its_own_options(self):
        config = configure("permuted-digits", "dgr", hold="ewc-mas", strength=2.0, mas_output="softmax")
        assert (config.strength, config.mas_output, config.generator_latent) == (2.0, "softmax", 20)
        with pytest.raises(OptionError, match="'dgr' needs a strength or a budget"):
            RunConfig(stream="permuted-digits", method="dgr", options={"hold": "ewc-mas"})


class TestReading:
    def test_what_the_run_has_not_is_none_and_what_nothing_has_is_an_error(self):
        config = configure("permuted-digits", "none")
        assert (config.strength, config.buffer_size) == (None, None)
        with pytest.raises(AttributeError, match="a run has no setting 'elasticity'"):
            _ = config.elasticity

    def test_options_cannot_be_changed_in_place(self):
        config = configure("permuted-digits", "ewc-fisher")
        with pytest.raises(TypeError):
            config.options["strength"] = 3.0

    def test_equal_ones_are_one_and_others_are_others(self):
        config, again, other = (configure("permuted-digits", "ewc-fisher", strength=s) for s in (1, 1.0, 2.0))
        assert config == again
        assert config != other
        assert len({config, again, other}) == 2

    @pytest.mark.parametrize("copied", [lambda c: pickle.loads(pickle.dumps(c)), copy.copy, copy.deepcopy])
    def test_copies_are_equal(self, copied):
        config = configure("split-digits", "dgr", hold="ewc-mas", strength=2.0, hidden=(3, 4))
        assert copied(config) == config
        assert hash(copied(config)) == hash(config)

    def test_changed_leaves_all_else(self):
        config = configure("permuted-digits", "ewc-fisher", strength=2.0, fisher="sampled")
        other = config.changed(seed=3)
        assert (other.seed, other.strength, other.fisher) == (3, 2.0, "sampled")
        assert other.changed(seed=config.seed) == config
        with pytest.raises(UnknownNameError, match=r"unknown setting 'seeds'. Did you mean 'seed'\?"):
            config.changed(seeds=3)
