"""The notebooks run from top to bottom, on what is committed, and keep no output."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_is_a_notebook():
    assert [path.name for path in NOTEBOOKS] == ["wva-plots.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's own, of its event loop and its folders
        import nbformat
        from nbclient import NotebookClient

        notebook = nbformat.read(path, as_version=4)
        assert not any(cell.get("outputs") for cell in notebook.cells)
        monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
        client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}})
        asyncio.run(client.async_execute())
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not any(output.output_type == "error" for output in shown)
    pictures = [output for output in shown if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3  # at least the main curve's
