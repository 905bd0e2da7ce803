"""The notebook that shows the evidence runs, and shows it."""

import shutil
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import dissect

NOTEBOOK = Path(__file__).parents[1] / "docs" / "explain.ipynb"


def test_the_notebook_runs_and_shows_the_explanation(shapes_run, tmp_path, monkeypatch):
    run = shutil.copytree(shapes_run, tmp_path / "runs" / "quickstart")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    dissect.main(["label", f"--run={run}", "--device=cpu"])
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in book.cells if cell.cell_type == "code"]
    shown = outputs[0][-1].data["text/html"]
    assert 'class="lwta"' in shown
    assert "How to read this" in shown
    silenced, before = (line.split()[-1] for line in outputs[3][0].text.splitlines())
    assert silenced == before  # the change that was measured is the one that comes
