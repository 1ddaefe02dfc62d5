"""The commands of docs/quickstart.md run in their order, on fewer images and steps, then the Python of the README."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.examples import code_blocks, examples_of_document
from tests.helpers import REPOSITORY, SCRIPTS, command

SMALLER = {
    "8000": "24",
    "100": "8",
    "training { steps: 1000 }": "training { steps: 2 optimizer { warmup_steps: 1 } } train_dataset { batch_size: 4 }",
}


@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    examples = list(examples_of_document(REPOSITORY / "docs" / "quickstart.md"))
    assert len(examples) == 7
    for example in examples:
        words = [SMALLER.get(word, word) for word in example.words]
        command(SCRIPTS[example.program].removeprefix("maxdl_tf."), *words, SHAPES_TFRECORDS="shapes")

    annotations = json.loads((tmp_path / "predictions" / "panoptic.json").read_text(encoding="utf-8"))
    assert len(annotations["annotations"]) == 8
    assert "PQ" in (tmp_path / "report.html").read_text(encoding="utf-8")

    shutil.copy(next((tmp_path / "pictures").iterdir()), tmp_path / "photo.jpg")
    (code,) = (
        content
        for _, language, content in code_blocks((REPOSITORY / "README.md").read_text(encoding="utf-8"))
        if language == "python"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "overlay.png").exists()
