"""Modules of others are imported once, by name or as installed packages have them."""

import sys

import pytest

from holdfast.errors import OptionError
from holdfast.lab import plugins
from holdfast.lab.plugins import load_plugins, named_plugins


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of later tests do not look for the modules of these."""
    monkeypatch.setattr(plugins, "_named", {})


def test_a_module_of_the_working_folder_is_imported_once(tmp_path, monkeypatch):
    (tmp_path / "counted_plugin.py").write_text("import sys\nsys.counted = getattr(sys, 'counted', 0) + 1\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    load_plugins(["counted_plugin"])
    load_plugins(["counted_plugin"])
    assert sys.counted == 1
    assert "counted_plugin" in named_plugins()
    assert sys.path == path


def test_a_module_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        OptionError, match=r"plugin 'broken_plugin' .*: broken_plugin\.py, line 1 raised ZeroDivisionError: d"
    ):
        load_plugins(["broken_plugin"])
    with pytest.raises(OptionError, match="plugin 'no_such_plugin' cannot be imported: ModuleNotFoundError"):
        load_plugins(["no_such_plugin"])
    assert not {"broken_plugin", "no_such_plugin"} & set(named_plugins())
