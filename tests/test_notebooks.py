"""Runs the notebooks of docs/notebooks, and checks the outputs that are committed with them.

The cells run in plain Python, in order, so that Jupyter need not be installed: `%%bash` cells in Bash, the others with
`exec`. To write new outputs: jupyter execute --inplace docs/notebooks/pictures_to_map.ipynb
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import warnings
from unittest import mock

import pytest
from PIL import Image

from tests.helpers import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))
SIZES = "TRAIN_IMAGES, STEPS = "


def cells_of(path, kind: str) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def run_cell(source: str, namespace: dict):
    """Runs a cell; returns the value of its last line if that is an expression, as Jupyter would show it."""
    if source.startswith("%%bash\n"):
        subprocess.run(["bash", "-e", "-c", source.partition("\n")[2]], check=True)
        return None
    body = ast.parse(source).body
    shown = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), namespace)
    return eval(compile(ast.Expression(shown.value), "cell", "eval"), namespace) if shown else None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    """With four images and two steps."""
    monkeypatch.chdir(tmp_path)
    pictures, namespace = [], {}
    commands = os.path.dirname(sys.executable)
    with mock.patch.dict(os.environ, PATH=f"{commands}{os.pathsep}{os.environ['PATH']}"), warnings.catch_warnings():
        for cell in cells_of(path, "code"):
            source = re.sub(rf"{SIZES}\d+, \d+", f"{SIZES}4, 2", "".join(cell["source"]))
            source = source.replace('"warmup_steps": 30', '"warmup_steps": 1')
            shown = run_cell(source, namespace)
            if isinstance(shown, Image.Image):
                pictures.append(shown)
    assert namespace["STEPS"] == 2
    assert [picture.size for picture in pictures] == [(588, 98)] * 2
    assert (tmp_path / "run" / "ckpt-2.index").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_of_one_whole_run(path):
    cells = cells_of(path, "code")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    text = "".join("".join(output.get("text", [])) for output in outputs)
    assert "class         PQ     SQ     RQ" in text
    assert "Traceback" not in text
    assert not re.findall(r"(?<![\w.])/\w+/\S*", text), "an absolute path of somebody's machine"
    assert path.stat().st_size < 300_000


def test_the_links_of_notebooks_lead_somewhere():
    links = [
        (path, link)
        for path in NOTEBOOKS
        for cell in cells_of(path, "markdown")
        for link in re.findall(r"\]\(([^)#]+)", "".join(cell["source"]))
    ]
    assert links
    assert not [link for path, link in links if not (path.parent / link).exists()]
