"""A split appears whole: after a kill at any moment there is the old one, the new one, or one that readers refuse."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from maxdl_tf import class_table
from maxdl_tf.class_table import DatasetInfo, SegmentClass
from maxdl_tf.data.shards import find_shards
from maxdl_tf.data_gen import shard_output
from maxdl_tf.data_gen.shard_output import Output
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # The children only move files.

INFO = DatasetInfo("test", (SegmentClass(1, "thing", True, (1, 2, 3), 7),))
_KILLED = 99


def _convert(output: Output, content: str) -> None:
    """A conversion whose shards hold `content`, without TensorFlow."""
    names = output.shard_names(100)
    with shard_output.prepared(INFO, output):
        for name in names:
            storage.write_file(f"{output.staging}/{name}", content.encode())
        shard_output.publish(INFO, names, output)


def _killed_before_change(number: int, work: Callable[[], None]) -> bool:
    """Runs `work` in a process that ends before its change `number` of a file; whether it came so far."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def counted(function):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                if count > number:
                    os._exit(_KILLED)
                return function(*arguments, **options)

            return call

        changes = [(os, "replace"), (os, "unlink"), (os, "rmdir"), (shutil, "rmtree")]
        try:
            for module, name in changes:
                mock.patch.object(module, name, counted(getattr(module, name))).start()
            work()
        finally:
            os._exit(0 if count <= number else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, _KILLED)
    return status == _KILLED


def _read(folder) -> str:
    """What a reader finds: the content of all shards, or "refused"."""
    try:
        files = find_shards(f"{folder}/train-*.tfrecord")
    except UserError:
        return "refused"
    (content,) = {Path(path).read_text() for path in files}
    return content


@pytest.mark.parametrize("old_shards", [None, 2, 3], ids=["first", "same count", "other count"])
def test_a_kill_before_any_change_of_a_file(tmp_path, old_shards):
    new = Output(str(tmp_path / "out"), "train", num_shards=2, overwrite=old_shards is not None)
    old = "old" if old_shards else None
    seen, came_so_far = set(), True
    for number in range(100):
        if old:
            _convert(replace(new, num_shards=old_shards), old)
        came_so_far = _killed_before_change(number, lambda: _convert(new, "new"))
        seen.add(_check_rerun(new, old))
        shutil.rmtree(new.folder)
        if not came_so_far:
            break
    assert seen == {"refused", "new", old} - {None}


def test_a_kill_while_the_next_conversion_moves_files_back(tmp_path):
    new = Output(str(tmp_path / "out"), "train", num_shards=2, overwrite=True)
    state, refused = tmp_path / "state", 0
    _convert(new, "old")
    shutil.copytree(new.folder, state)
    for first in range(100):
        if not _killed_before_change(first, lambda: _convert(new, "new")):
            break
        if _read(new.folder) == "refused":
            refused += 1
            killed_once = shutil.copytree(new.folder, tmp_path / "killed_once")
            for second in range(100):
                came_so_far = _killed_before_change(second, lambda: _convert(new, "newer"))
                _check_rerun(new, "old")
                shutil.rmtree(new.folder)
                shutil.copytree(killed_once, new.folder)
                if not came_so_far:
                    break
            shutil.rmtree(killed_once)
        shutil.rmtree(new.folder)
        shutil.copytree(state, new.folder)
    assert refused == 3  # One or both shards are moved out, or one is moved in.


def _check_rerun(output: Output, earlier: str | None) -> str:
    """Converts again after a kill; returns what a reader found before."""
    found = _read(output.folder)
    kept = earlier if found == "refused" else found
    if kept is None:
        _convert(output, "rerun")
    else:
        with pytest.raises(UserError, match=r"already has . shards"):
            _convert(replace(output, overwrite=False), "rerun")
        assert _read(output.folder) == kept
        _convert(replace(output, overwrite=True), "rerun")
    assert _read(output.folder) == "rerun"
    assert sorted(os.listdir(output.folder)) == ["dataset_info.textproto", *output.shard_names(100)]
    return found


def test_an_error_in_the_middle_restores_the_earlier_split(tmp_path):
    output = Output(str(tmp_path), "train", num_shards=2, overwrite=True)
    _convert(output, "old")
    moves = iter([os.replace] * 4)

    def fail_later(*paths):
        move = next(moves, None)
        if move is None and os.replace is fail_later:
            mock.patch.stopall()
            raise OSError("the network is down")
        return (move or os.replace)(*paths)

    mock.patch.object(os, "replace", fail_later).start()
    with pytest.raises(OSError, match="the network is down"):
        _convert(output, "new")
    assert _read(tmp_path) == "old"
    assert sorted(os.listdir(tmp_path)) == ["dataset_info.textproto", *output.shard_names(100)]


def test_two_conversions_of_a_split_exclude_each_other_and_two_splits_do_not(tmp_path):
    output = Output(str(tmp_path), "train", num_shards=1)
    with shard_output.prepared(INFO, output):
        with pytest.raises(UserError, match=rf"split 'train' of .* in use by process {os.getpid()} on "):
            _convert(output, "second")
        _convert(replace(output, split="val"), "val")
    assert sorted(os.listdir(tmp_path)) == ["dataset_info.textproto", "val-00000-of-00001.tfrecord"]


def test_a_class_table_that_came_meanwhile_is_compared(tmp_path):
    output = Output(str(tmp_path), "train", num_shards=1)
    with pytest.raises(UserError, match="label_divisor is 512"), shard_output.prepared(INFO, output):
        other = class_table.to_text(replace(INFO, label_divisor=512))
        (tmp_path / class_table.FILE_NAME).write_text(other)
        shard_output.publish(INFO, output.shard_names(1), output)
    assert os.listdir(tmp_path) == [class_table.FILE_NAME]


def test_a_killed_conversion_does_not_take_the_class_table_of_another_split(tmp_path):
    train, table = Output(str(tmp_path), "train", num_shards=3), tmp_path / class_table.FILE_NAME
    for number in range(100):
        assert _killed_before_change(number, lambda: _convert(train, "new"))
        if table.exists():
            break
    _convert(replace(train, split="val"), "val")
    with (
        pytest.raises(UserError, match="label_divisor"),
        shard_output.prepared(replace(INFO, label_divisor=512), train),
    ):
        pass
    assert class_table.load(str(table)) == INFO


@pytest.mark.parametrize("text", ["", "[]", '{"earlier": [], "new": ["../train-00000-of-00001.tfrecord"]}'])
def test_a_damaged_or_hostile_journal_moves_nothing(tmp_path, text):
    output = Output(str(tmp_path / "out"), "train", num_shards=1)
    for name in (f"{output.staging}/x", output.journal, str(tmp_path / "train-00000-of-00001.tfrecord")):
        os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "w") as file:
            file.write(text)
    with pytest.raises(UserError, match=r"moving\.json is damaged"):
        _convert(output, "new")
    assert os.path.exists(f"{output.staging}/x") and (tmp_path / "train-00000-of-00001.tfrecord").exists()


def test_a_link_in_place_of_the_hidden_folder_is_not_followed(tmp_path):
    output = Output(str(tmp_path / "out"), "train", num_shards=1)
    (tmp_path / "precious" / "new").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    os.symlink(tmp_path / "precious", output.hidden)
    _convert(output, "new")
    assert os.listdir(tmp_path / "precious") == ["new"] and _read(output.folder) == "new"
