"""A new folder is there whole, or not at all."""

import os

import pytest

from maxdl_tf.errors import UserError
from maxdl_tf.files import folder_lock
from maxdl_tf.files.new_folder import appears_when_complete, check_new_folder


@pytest.mark.parametrize("exists", [False, True])
def test_it_appears_at_the_end(tmp_path, exists):
    path = tmp_path / "parent" / "new"
    if exists:
        path.mkdir(parents=True)
    check_new_folder(str(path), "--output")
    with appears_when_complete(str(path)) as folder:
        with open(os.path.join(folder, "file"), "w") as file:
            file.write("x")
        assert not path.exists() or not os.listdir(path)
    assert os.listdir(path) == ["file"] and os.listdir(path.parent) == ["new"]


def test_after_an_error_nothing_is_left(tmp_path):
    with pytest.raises(KeyboardInterrupt), appears_when_complete(str(tmp_path / "new")) as folder:
        (tmp_path / folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_where_it_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"--output .*file exists and is not an empty folder; name a new one, please"):
        check_new_folder(str(tmp_path / "file"), "--output", hint=", please")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        check_new_folder(str(tmp_path), "--output")
    with pytest.raises(UserError, match="file is not a folder that can be written to"):
        check_new_folder(str(tmp_path / "file" / "new"), "--output")
    with (
        pytest.raises(UserError, match="cannot be written to: Not a directory; name another"),
        appears_when_complete(str(tmp_path / "file" / "new")),
    ):
        pass


def test_what_a_killed_process_left_does_not_matter(tmp_path):
    left = tmp_path / ".1.incomplete" / "new"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    (left.parent / folder_lock.FILE).write_text(f"process {os.getpid()} on it")
    with appears_when_complete(str(tmp_path / "1")) as folder:
        assert os.listdir(folder) == []
    assert os.listdir(tmp_path) == ["1"] and os.listdir(tmp_path / "1") == []


def test_two_that_make_the_same_folder(tmp_path):
    path = str(tmp_path / "1")
    with appears_when_complete(path) as folder:
        with pytest.raises(UserError, match=r"1 is in use by process \d+ on"), appears_when_complete(path):
            pass
        assert os.path.isdir(folder)
    with pytest.raises(UserError, match=r"cannot write .*1: .*not empty"), appears_when_complete(path):
        (tmp_path / "1" / "of another").write_text("x")
    assert os.listdir(tmp_path) == ["1"] and os.listdir(path) == ["of another"]


def test_a_relative_path(tmp_path, monkeypatch):
    (tmp_path / "a [1]").mkdir()
    monkeypatch.chdir(tmp_path / "a [1]")
    with appears_when_complete("new") as folder:
        assert folder == os.path.join(".new.incomplete", "new")  # TensorFlow cannot restore below a bracket.
    with appears_when_complete("other/") as folder:
        pass
    assert sorted(os.listdir()) == ["new", "other"]
