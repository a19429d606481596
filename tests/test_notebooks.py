"""Every notebook of `examples/` runs from top to bottom, at small size, and keeps the outputs of a full run.

One code cell has the tag `parameters`: the knobs. The entry `small` of its metadata is code with smaller knobs, which
is run right after it here. The entry `needs` of the notebook's own metadata lists what may be missing: importable
modules, and files of the folder that `RECIPE_DATA` names (anything with a dot in it).
"""

import importlib.util
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
DATA = (ROOT / os.environ.get("RECIPE_DATA", "../shared/data")).resolve()
LARGEST = 1.5e6  # bytes
OF_A_MACHINE = re.compile(r"/(home|root|Users|tmp|work|mnt)/|site-packages")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def at_small_size(notebook):
    """The notebook with its small knobs run after the cell that is tagged `parameters`."""
    found = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    assert len(found) == 1, f"one cell should have the tag `parameters`; {len(found)} have"
    small = notebook.cells[found[0]].metadata.get("small")
    assert small, "the cell with the tag `parameters` should have an entry `small` in its metadata, code for the test"
    notebook.cells.insert(found[0] + 1, nbformat.v4.new_code_cell(small))
    return notebook


def missing(notebook):
    """What of the notebook's needs is not here."""
    needs = notebook.metadata.get("needs", [])
    there = lambda need: (DATA / need).exists() if "." in need else importlib.util.find_spec(need) is not None  # noqa: E731
    return [need for need in needs if not there(need)]


def run(notebook, folder, monkeypatch):
    """Execute in a folder of its own with the repository on the path; raises where a cell does."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    variables = {"PYTHONPATH": path, "RECIPE_DATA": str(DATA), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IPYTHONDIR", str(folder))
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_at_small_size(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    if absent := missing(notebook):
        pytest.skip(f"needs {', '.join(absent)}")
    run(at_small_size(notebook), tmp_path, monkeypatch)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_keeps_the_outputs_of_a_full_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert all(cell.execution_count for cell in code_cells(notebook)), "run every cell, then save"
    assert any("image/png" in output.get("data", {}) for output in outputs), "a picture should be saved in it"
    assert not any(output.output_type == "error" for output in outputs)
    assert path.stat().st_size < LARGEST
    assert notebook.cells[0].cell_type == "markdown", "begin with the question"
    assert "?" in notebook.cells[0].source, "begin with the question"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_names_paths_of_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    texts = [
        str(output.get("text", output.get("data", {}).get("text/plain", "")))
        for cell in code_cells(notebook)
        for output in cell.outputs
    ]
    for text in [cell.source for cell in notebook.cells] + texts:
        assert OF_A_MACHINE.search(text) is None, text


def made(*cells, small="x = 2", **metadata):
    knobs = nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"], "small": small})
    rest = [nbformat.v4.new_code_cell(source) for source in cells]
    return nbformat.v4.new_notebook(cells=[knobs, *rest], metadata=metadata)


def test_small_knobs_replace_the_others_and_the_repository_is_on_the_path(tmp_path, monkeypatch):
    notebook = made("import recipe, os\nprint(x, sorted(os.listdir()))")
    cell = run(at_small_size(notebook), tmp_path, monkeypatch).cells[-1]
    assert any(output.text.startswith("2 [") for output in cell.outputs)
    with pytest.raises(CellExecutionError, match="no such knob"):
        run(made("raise ValueError('no such knob')"), tmp_path, monkeypatch)


def test_a_notebook_without_small_knobs_is_refused():
    with pytest.raises(AssertionError, match="should have an entry `small`"):
        at_small_size(made(small=""))
    with pytest.raises(AssertionError, match="0 have"):
        at_small_size(nbformat.v4.new_notebook())


def test_missing_data_and_modules_are_named():
    assert missing(made(needs=["torch", "no_such_module", "no_such_file.npz"])) == [
        "no_such_module",
        "no_such_file.npz",
    ]
