"""maxdl-predict with --runner: the files of maxdl-predict without it, byte for byte."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maxdl_tf import predict
from maxdl_tf.inference import predict_files
from tests.export.color_export import save_color_model
from tests.helpers import in_process
from tests.inference.color_network import BLUE, RED, striped_image

needs_beam = pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="Apache Beam is not installed")


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory):
    return save_color_model(tmp_path_factory.mktemp("exports") / "colors")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (height, width) in enumerate([(97, 129), (60, 40), (33, 80), (50, 50), (20, 70)]):
        Image.fromarray(striped_image(height, width, (RED, BLUE))[0]).save(folder / f"{number}.png")
    return folder


def _run(*arguments) -> int:
    return in_process(predict, *arguments, program="maxdl-predict")


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_beam
def test_files_are_those_of_one_process(export_dir, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict_files, "IMAGES_PER_CHUNK", 2)  # Three chunks, whose order must be kept.
    arguments = ("--model", export_dir, "--input", photos, "--coco_instances", "--visualize=features")
    assert _run(*arguments, "--output", tmp_path / "own") == 0
    assert _run(*arguments, "--output", tmp_path / "beam", "--runner=DirectRunner") == 0
    own, beam = _files(tmp_path / "own"), _files(tmp_path / "beam")
    assert own == beam
    assert len(own) == 3 * 5 + 2
    assert [image["id"] for image in json.loads(beam["panoptic.json"])["images"]] == list(range(5))
    assert "predicted 5 of 5 images" in capsys.readouterr().out


@needs_beam
def test_corrupt_images_are_told_and_counted(export_dir, photos, tmp_path, capsys):
    (photos / "2.png").write_bytes(b"no image")
    arguments = ("--model", export_dir, "--input", photos, "--nooverlays")
    assert _run(*arguments, "--output", tmp_path / "beam", "--runner=DirectRunner") == 1
    captured = capsys.readouterr()
    assert "failed: " in captured.err and "2.png: cannot be read as an image" in captured.err
    assert "predicted 4 of 5 images" in captured.out and "1 failed" in captured.out
    assert _run(*arguments, "--output", tmp_path / "own") == 1
    assert _files(tmp_path / "own") == _files(tmp_path / "beam")


@needs_beam
def test_a_worker_loads_the_model_once_and_a_later_run_the_newer_model(export_dir, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_files, "IMAGES_PER_CHUNK", 1)
    loaded, load = [], predict_files.Predictor.from_export
    monkeypatch.setattr(predict_files.Predictor, "from_export", lambda *given: loaded.append(given) or load(*given))
    arguments = ("--model", export_dir, "--input", photos, "--nooverlays", "--runner=DirectRunner")
    for run in (1, 2):
        assert _run(*arguments, "--output", tmp_path / f"out{run}") == 0
        assert len(loaded) == 2 * run  # The command itself needs the class table.


@pytest.mark.parametrize("runner", [[], pytest.param(["--runner=DirectRunner"], marks=needs_beam)])
def test_input_and_output_can_be_any_path_of_gfile(export_dir, photos, tmp_path, runner, capsys):
    """file:// stands for the schemes of remote file systems, which all go the same way."""
    assert _run("--model", export_dir, "--input", photos, "--output", tmp_path / "local") == 0
    remote = f"file://{tmp_path}"
    arguments = ("--model", export_dir, "--output", f"{remote}/remote", *runner)
    assert _run(*arguments, "--input", f"{remote}/photos", "--input", f"{remote}/photos/*.png") == 0
    assert _files(tmp_path / "local") == _files(tmp_path / "remote")
    assert _run(*arguments, "--input", f"{remote}/photos/0.png") == 2
    assert "already holds predictions" in capsys.readouterr().err
    assert _run(*arguments, "--input", f"{remote}/photos/0.png", "--overwrite") == 0
    assert {Path(name).stem for name in _files(tmp_path / "remote")} == {"0", "panoptic"}


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--runner=DirectRunner", "--diagnose"], "--diagnose does not work with --runner"),
        (["--beam_options=project=x"], "--beam_options are for a --runner"),
    ],
)
def test_flags_that_do_not_go_together(export_dir, photos, tmp_path, capsys, flags, message):
    assert _run("--model", export_dir, "--input", photos, "--output", tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_is_not_for_workers(photos, tmp_path, capsys):
    (tmp_path / "model.index").write_text("")
    arguments = ("--model", tmp_path / "model", "--config_file", "x.textproto", "--runner=DirectRunner")
    assert _run(*arguments, "--input", photos, "--output", tmp_path / "out") == 2
    assert "--runner needs an export" in capsys.readouterr().err


def test_without_beam_the_extra_is_named(export_dir, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)  # As if it were not installed.
    arguments = ("--model", export_dir, "--input", photos, "--output", tmp_path / "out")
    assert _run(*arguments, "--runner=DirectRunner") == 2
    assert "pip install 'maxdl_tf[beam]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pixels_become_png_and_jpeg_alike_wherever_they_go(tmp_path):
    from maxdl_tf.files import images

    pixels = np.random.default_rng(0).integers(0, 256, [9, 7, 3], dtype=np.uint8)
    for suffix in ("png", "jpg"):
        images.write_image(str(tmp_path / f"local.{suffix}"), pixels)
        images.write_image(f"file://{tmp_path}/remote.{suffix}", pixels)
        assert (tmp_path / f"local.{suffix}").read_bytes() == (tmp_path / f"remote.{suffix}").read_bytes()
