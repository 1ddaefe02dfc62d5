"""A model_dir that cannot take the checkpoints is found out before the training."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from maxdl_tf.errors import UserError
from maxdl_tf.files import disk_space


def test_a_directory_is_made_and_left_empty(tmp_path):
    directory = tmp_path / "runs" / "first"
    disk_space.check_writable(str(directory))
    disk_space.check_space(str(directory), 1_000_000, 3)
    assert directory.is_dir() and not os.listdir(directory)


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_in_the_way(tmp_path, below):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(UserError, match=r"file.* because it is a file; remove it, or choose another path"):
        disk_space.check_writable(str(path / below))


def test_a_file_is_not_replaced_for_a_folder_or_a_pipe(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    disk_space.check_file(str(tmp_path / "new" / "file.json"), "--json")
    with pytest.raises(UserError, match=r"--json=.*new is a folder; give the path of a file"):
        disk_space.check_file(str(tmp_path / "new"), "--json")
    monkeypatch.setattr("tempfile.TemporaryFile", None)  # Nobody may write beside /dev/stdout.
    disk_space.check_file(str(tmp_path / "pipe"), "--json")


def test_what_may_not_be_written(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "somewhere")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # Permission bits do not stop root.
    with pytest.raises(UserError, match=r"cannot write to .*Permission denied; check the path and your permissions"):
        disk_space.check_writable(str(tmp_path))


def test_too_little_free_space_names_both_sizes(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(UserError, match=r"free; 3 checkpoints of .* will be written; make room"):
        disk_space.check_space(str(tmp_path), free // 2, 3)
    assert not os.listdir(tmp_path)


def test_a_quota_that_the_free_space_does_not_show(tmp_path, monkeypatch):
    def over_quota(descriptor, start, length):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "posix_fallocate", over_quota)
    with pytest.raises(UserError, match="cannot take a checkpoint of 1 MB: Disk quota exceeded"):
        disk_space.check_space(str(tmp_path), 1_000_000, 1)
    assert not os.listdir(tmp_path)


def test_a_full_disk(small_disk):
    disk_space.check_writable(str(small_disk))
    with pytest.raises(UserError, match="make room"):
        disk_space.check_space(str(small_disk), 150_000, 2)
    (small_disk / "filler").write_bytes(b"x" * 204800)
    with pytest.raises(UserError, match="No space left on device; make room"):
        disk_space.check_writable(str(small_disk))
    assert os.listdir(small_disk) == ["filler"]
