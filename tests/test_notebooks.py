"""The notebooks run from top to bottom without a network, and what is saved in them is fit to be read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the notebooks draw: pip install matplotlib")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install scikit-learn")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
QUICK = ("01_quickstart",)
SECONDS = 600  # for one cell, on a machine that does other things as well

of_each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
run_each = pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow) for path in NOTEBOOKS],
)


def cells(path: Path, kind: str) -> list[dict]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def run(path: Path) -> list[str]:
    """Run a notebook with nbmake; what its cells printed."""
    pytest.importorskip("ipykernel", reason="runs notebooks: pip install ipykernel")
    nb_run = pytest.importorskip("nbmake.nb_run", reason="runs notebooks: pip install nbmake")
    result = nb_run.NotebookRun(path, SECONDS).execute()
    assert result.error is None, result.error.trace
    code = [cell for cell in result.nb.cells if cell.cell_type == "code"]
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in code]


@pytest.fixture
def _no_network(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@run_each
@pytest.mark.usefixtures("_no_network")
def test_it_runs_from_top_to_bottom(path):
    printed = run(path)
    assert "Paddle" in printed[0]


# None in `sys.modules` would hide it too, but not from SciPy, which takes a name there for a package that is loaded.
WITHOUT_PYTORCH = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("_no_network")
def test_conversion_is_of_use_without_pytorch(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_PYTORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    printed = "\n".join(run(next(path for path in NOTEBOOKS if path.stem == "02_convert_and_verify")))
    assert "not checked against PyTorch" in printed
    assert "pip install torch" in printed
    assert "largest change of any number: 0.0" in printed


@of_each
def test_its_first_code_is_the_cell_that_every_notebook_has(path):
    def first(notebook: Path) -> str:
        return "".join(cells(notebook, "code")[0]["source"]).replace(notebook.stem, "NAME")

    assert first(path) == first(NOTEBOOKS[0])


@of_each
def test_every_heading_is_chinese_with_english_below(path):
    text = "\n\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    headings = re.findall(r"^(#+ .*)\n(.*)$", text, re.MULTILINE)
    assert len(headings) == len(re.findall(r"^#+ ", text, re.MULTILINE)) > 4
    for heading, below in headings:
        assert re.search(r"[\u4e00-\u9fff]", heading), heading
        assert re.fullmatch(r"\*[A-Z`][^\u4e00-\u9fff]*\*", below), heading


@of_each
def test_its_outputs_are_saved_and_clean(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert path.stat().st_size < 400_000
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    texts = [text for output in outputs for text in (output.get("text"), output.get("data", {}).get("text/plain"))]
    for text in map("".join, filter(None, texts)):
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|Users|opt)\b|[A-Z]:\\", text), text
        assert not re.search(r"\r|\x1b|it/s|Warning|Traceback|object at 0x", text), text
