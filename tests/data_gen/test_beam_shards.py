"""Apache Beam writes the same shards as local processes, byte for byte, and none if it fails."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from maxdl_tf.data_gen import shapes, shard_writer
from maxdl_tf.data_gen.shard_output import Output
from maxdl_tf.errors import UserError
from tests.data_gen.conversion import complaint, run_convert
from tests.data_gen.test_shard_writer import INFO, Annotate

needs_beam = pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="Apache Beam is not installed")


def _files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _write(folder, bad=(), **options):
    output = Output(str(folder), "train", num_shards=3, runner="DirectRunner", **options)
    return shard_writer.write_shards(range(8), Annotate(frozenset(bad)), INFO, output)


@needs_beam
def test_bytes_equal_those_of_local_processes(tmp_path):
    painter = shapes.Painter(40, 56, 3, seed=1, split="train")
    for name, runner in (("own", None), ("beam", "DirectRunner")):
        output = Output(str(tmp_path / name), "train", num_shards=3, runner=runner)
        report = shard_writer.write_shards(range(8), painter.annotate, shapes.dataset_info(), output)
        assert (report.written, report.num_shards) == (8, 3)
    own, beam = _files(tmp_path / "own"), _files(tmp_path / "beam")
    assert own == beam
    assert len(own) == 4


@needs_beam
def test_bytes_equal_those_of_local_processes_with_several_workers(tmp_path):
    flags = ["--count=6", "--num_shards=2", "--height=40", "--width=40"]
    assert run_convert("shapes", *flags, f"--output_dir={tmp_path / 'own'}") == 0
    workers = ["--beam_options=direct_num_workers=2", "--beam_options=--direct_running_mode=multi_processing"]
    assert run_convert("shapes", *flags, f"--output_dir={tmp_path / 'beam'}", "--runner=DirectRunner", *workers) == 0
    assert _files(tmp_path / "own") == _files(tmp_path / "beam")


@needs_beam
def test_bad_input_stops_the_conversion_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"image_4.jpg: broken"):
        _write(tmp_path / "new", bad=[4])
    assert list(tmp_path.iterdir()) == []


@needs_beam
def test_bad_input_is_skipped_and_listed_in_order_on_request(tmp_path):
    report = _write(tmp_path / "beam", bad=[1, 6], skip_bad_input=True)
    assert (report.written, report.skipped) == (6, ["image_1.jpg: broken", "image_6.jpg: broken"])
    own = Output(str(tmp_path / "own"), "train", num_shards=3, skip_bad_input=True)
    shard_writer.write_shards(range(8), Annotate(frozenset({1, 6})), INFO, own)
    assert _files(tmp_path / "own") == _files(tmp_path / "beam")


@needs_beam
def test_repeated_work_is_harmless(tmp_path):
    """Runners may give a shard to two workers, or again to one whose answer was lost."""
    from maxdl_tf.data_gen.shard_writer import BeamShardWriter

    class Twice(BeamShardWriter):
        def __call__(self, name, tasks):
            super().__call__(name, tasks)
            return super().__call__(name, tasks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maxdl_tf.data_gen.shard_writer.BeamShardWriter", Twice)
        report = _write(tmp_path / "twice")
    assert report.written == 8
    _write(tmp_path / "once")
    assert _files(tmp_path / "once") == _files(tmp_path / "twice")


@pytest.mark.parametrize("runner", [None, pytest.param("DirectRunner", marks=needs_beam)])
def test_any_path_of_gfile_can_be_written_to(tmp_path, runner):
    """file:// stands for all schemes of remote file systems."""
    for folder in (str(tmp_path / "local"), f"file://{tmp_path}/remote"):
        output = Output(folder, "train", num_shards=2, runner=runner)
        shard_writer.write_shards(range(5), Annotate(), INFO, output)
    assert _files(tmp_path / "local") == _files(tmp_path / "remote")
    with pytest.raises(UserError, match="already has 2 shards"):
        shard_writer.write_shards(range(5), Annotate(), INFO, output)


def test_without_beam_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)  # Simulates a missing package.
    assert run_convert("shapes", f"--output_dir={tmp_path / 'out'}", "--runner=DirectRunner") == 2
    assert "pip install 'maxdl_tf[beam]'" in complaint(capsys)
    assert not (tmp_path / "out").exists()


def test_options_of_a_runner_need_one(tmp_path, capsys):
    assert run_convert("shapes", f"--output_dir={tmp_path / 'out'}", "--beam_options=project=x") == 2
    assert "name one" in complaint(capsys)
