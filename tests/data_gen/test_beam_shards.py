"""Apache Beam writes the same shards as local processes, byte for byte, and none if it fails."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import sys
from pathlib import Path

import pytest

from maxdl_tf import beam_pipeline
from maxdl_tf.data_gen import shapes, shard_writer
from maxdl_tf.data_gen.shard_output import Output
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
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


def _ports(name=None, chunk=None) -> dict[str, list[str]]:
    """Addresses on which this process listens, by whether other machines reach them; a work of Beam."""
    sockets = {os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)}
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    found = {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}
    loopback = r"0100007F:.*|0{16}FFFF00000100007F:.*|0{24}01000000:.*"  # 127.0.0.1, the same in IPv6, and ::1.
    local = {address for address in found if re.fullmatch(loopback, address)}
    return {"local": sorted(local), "open": sorted(found - local)}


@needs_beam
@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="lists the ports by Linux's /proc")
def test_no_port_is_open_to_other_machines(tmp_path):
    """Workers that are threads use the same ports as processes."""
    before = _ports()
    options = ["direct_running_mode=multi_threading"]
    (during,) = beam_pipeline.run_chunks(_ports, {"0": 1}, str(tmp_path), "DirectRunner", options)
    assert set(during["open"]) <= set(before["open"])
    assert len(set(during["local"]) - set(before["local"])) >= 4  # Control, data, state and logs.


@needs_beam
@pytest.mark.parametrize("mode", ["in_memory", "multi_threading"])
def test_a_chunk_that_others_changed_is_not_unpickled(tmp_path, monkeypatch, mode):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "code ran"),)

    write = storage.write_file
    monkeypatch.setattr(storage, "write_file", lambda path, content: write(path, pickle.dumps(Hostile())))
    options = [f"direct_running_mode={mode}", "direct_num_workers=2"]
    with pytest.raises(UserError, match=r"0\.chunk was changed by another program; run the command again$"):
        beam_pipeline.run_chunks(_answer, {"0": 1}, str(tmp_path), "DirectRunner", options)
    assert not (tmp_path / "code ran").exists()


def _answer(name, chunk):
    return [name, chunk]


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
