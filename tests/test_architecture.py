"""docs/architecture.md is true: the cited functions exist, and an image takes the path that is written there."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from maxdl_tf import predict, trainer
from tests.helpers import REPOSITORY, command, in_process

TEXT = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
EXPERIMENT = REPOSITORY / "configs" / "shapes" / "max_deeplab_tiny_81.textproto"
SMALL = (
    "train_dataset { batch_size: 2 crop_size: 33 } eval_dataset { crop_size: 33 } "
    "training { steps: 1 optimizer { warmup_steps: 1 } }"
)


def functions_in(text: str) -> list[tuple[str, str]]:
    """(qualified name, file) of each "`name` in `file`"."""
    return re.findall(r"`([\w.]+)`\s+in\s+`([\w/]+\.py)`", text)


def path_of_an_image(section: int) -> list[tuple[str, str]]:
    """The functions in the numbered list of a section, in their order."""
    text = re.search(rf"^## {section}\. .*?(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL).group()
    steps = re.findall(r"^\d+\. .*?(?=^\d+\. |^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    return functions_in("".join(steps))


def definitions(path: Path) -> set[str]:
    """Names of the functions and classes of a module; Class.method for methods."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    top = [node for node in tree.body if isinstance(node, kinds)]
    methods = {f"{node.name}.{part.name}" for node in top for part in node.body if isinstance(part, kinds)}
    return {node.name for node in top} | methods


def test_functions_exist():
    found = functions_in(TEXT)
    assert len(found) > 40
    missing = [f"{name} in {file}" for name, file in found if name not in definitions(REPOSITORY / file)]
    assert not missing


class Calls:
    """Records the calls of the package's functions."""

    def __init__(self):
        self.names: list[tuple[str, str]] = []

    def __enter__(self):
        files: dict[str, str | None] = {}

        def profile(frame, event, argument):
            if event != "call":
                return
            code = frame.f_code
            if code.co_filename not in files:
                path = Path(code.co_filename)
                is_ours = REPOSITORY in path.parents and REPOSITORY / "tests" not in path.parents
                files[code.co_filename] = str(path.relative_to(REPOSITORY)) if is_ours else None
            if files[code.co_filename]:
                self.names.append((code.co_name, files[code.co_filename]))

        sys.setprofile(profile)
        return self

    def __exit__(self, *error):
        sys.setprofile(None)

    def check(self, path: list[tuple[str, str]]) -> None:
        """Fails unless the functions of a path are called one after the other, other calls in between ignored."""
        calls = iter(self.names)
        for name, file in path:
            call = name.rpartition(".")[2], file
            assert call in calls, f"{name} in {file} is not called after the function ahead of it in the list"


@pytest.mark.slow
def test_the_path_of_an_image(tmp_path, monkeypatch):
    shapes, images, model = (str(tmp_path / name) for name in ("shapes", "images", "model"))
    monkeypatch.setenv("SHAPES_TFRECORDS", shapes)
    arguments = ("shapes", "--height=33", "--width=33", "--count=4", "--split=train", f"--image_dir={images}")
    command("data_gen.convert", *arguments, f"--output_dir={shapes}")
    experiment = (f"--config_file={EXPERIMENT}", f"--override={SMALL}")

    with Calls() as training:
        assert in_process(trainer, *experiment, "--mode=train", f"--model_dir={model}") == 0
    training.check(path_of_an_image(14))

    with Calls() as prediction:
        arguments = (f"--model={model}", f"--input={images}", f"--output={tmp_path / 'predictions'}")
        assert in_process(predict, *experiment, *arguments) == 0
    prediction.check(path_of_an_image(15))
