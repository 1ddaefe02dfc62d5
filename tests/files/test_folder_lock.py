"""A folder has one writer at a time, and a killed one leaves it free."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from maxdl_tf.errors import UserError
from maxdl_tf.files import folder_lock
from maxdl_tf.files.folder_lock import FILE, FolderLock

_HOLDER = """
import sys, time
from maxdl_tf.files.folder_lock import FolderLock
with FolderLock(sys.argv[1], "it"):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_another_process_is_named_and_its_death_frees_the_folder(tmp_path):
    folder = tmp_path / "model"
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(folder)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"locked\n"
        message = f"--model_dir model is in use by process {holder.pid} on {socket.gethostname()}; wait until it ends"
        with pytest.raises(UserError, match=message), FolderLock(str(folder), "--model_dir model"):
            pass
        holder.send_signal(signal.SIGKILL)
    assert os.listdir(folder) == [FILE]  # Left, but it locks nothing.
    with FolderLock(str(folder), "it") as lock:
        assert lock.is_held and (folder / FILE).read_text().startswith(f"process {os.getpid()} on ")
    assert os.listdir(folder) == []


def test_two_in_one_process_exclude_each_other_too(tmp_path):
    with FolderLock(str(tmp_path), "it"):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} "), FolderLock(str(tmp_path), "it"):
            pass
        assert os.listdir(tmp_path) == [FILE]
    with FolderLock(str(tmp_path), "it"):
        pass


def test_a_folder_that_stays_empty_goes_again(tmp_path):
    with FolderLock(str(tmp_path / "a" / "b"), "it"):
        assert (tmp_path / "a" / "b" / FILE).exists()
    assert os.listdir(tmp_path) == []
    with FolderLock(str(tmp_path / "a" / "b"), "it"):
        (tmp_path / "a" / "b" / "result").write_text("x")
    assert os.listdir(tmp_path / "a" / "b") == ["result"]


def test_a_removed_folder_is_noticed_and_locked_again(tmp_path):
    folder = tmp_path / "model"
    with FolderLock(str(folder), "first") as lock:
        (folder / FILE).unlink()
        folder.rmdir()
        assert not lock.is_held
        lock.renew()
        assert lock.is_held
        (folder / FILE).rename(folder / "moved")
        with FolderLock(str(folder), "second"):
            assert not lock.is_held
            with pytest.raises(UserError, match="first is in use by process"):
                lock.renew()
    assert os.listdir(folder) == ["moved"]


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / FILE).symlink_to("../precious")
    with pytest.raises(UserError, match="it cannot be written to"), FolderLock(str(tmp_path / "model"), "it"):
        pass
    assert (tmp_path / "precious").read_text() == "x"


def test_where_nothing_can_be_locked_folders_are_created_all_the_same(tmp_path, monkeypatch):
    with FolderLock(f"file://{tmp_path}/remote", "it") as lock, FolderLock(f"file://{tmp_path}/remote", "it"):
        assert lock.is_held
    monkeypatch.setattr(folder_lock, "fcntl", None)  # Windows.
    with FolderLock(str(tmp_path / "local"), "it"), FolderLock(str(tmp_path / "local"), "it"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["local", "remote"]
