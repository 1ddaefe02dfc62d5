"""Files and folders: here and where tf.io.gfile reaches, for which file:// stands, they behave alike."""

from __future__ import annotations

import pytest

from maxdl_tf.errors import UserError
from maxdl_tf.files import storage


@pytest.fixture(params=["local", "remote"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"file://{tmp_path}"


def test_what_is_written_is_read_listed_renamed_and_removed(root):
    storage.make_folder(f"{root}/a/b")
    storage.make_folder(f"{root}/a/b")  # It may be there.
    storage.write_file(f"{root}/a/x", b"one")
    storage.write_file(f"{root}/a/y", b"two")
    assert storage.list_folder(f"{root}/a") == ["b", "x", "y"]
    assert storage.list_folder(f"{root}/none") == []
    storage.rename(f"{root}/a/x", f"{root}/a/y")
    assert (storage.read_file(f"{root}/a/y"), storage.read_file(f"{root}/a/y", 2)) == (b"one", b"on")
    assert (storage.exists(f"{root}/a/x"), storage.exists(f"{root}/a/y")) == (False, True)
    assert (storage.is_folder(f"{root}/a"), storage.is_folder(f"{root}/a/y")) == (True, False)
    storage.remove_file(f"{root}/a/y")
    storage.remove_folder(f"{root}/a")
    storage.remove_folder(f"{root}/a")  # It need not be there.
    assert storage.list_folder(root) == []


def test_files_are_found_in_all_folders_below_by_their_suffix(root):
    for name in ("b.PNG", "a/c.png", "a/.hidden.png", ".hidden/d.png", "a/e.txt"):
        storage.make_folder(f"{root}/{name}".rpartition("/")[0])
        storage.write_file(f"{root}/{name}", b"")
    assert storage.find_files(root, (".png",)) == ["a/c.png", "b.PNG"]


def test_errors_are_the_users_when_reading_and_oserrors_when_writing(root):
    with pytest.raises(UserError, match="none: there is no such file"):
        storage.read_file(f"{root}/none")
    storage.write_file(f"{root}/latin", b"\xe4")
    with pytest.raises(UserError, match="latin: not a text file in UTF-8"):
        storage.read_text(f"{root}/latin")
    with pytest.raises(OSError):
        storage.write_file(f"{root}/none/x", b"")
    with pytest.raises(OSError):
        storage.rename(f"{root}/none", f"{root}/x")
    with pytest.raises(UserError, match=r"--image_dir=.*none is not a folder"):
        storage.check_folder(f"{root}/none", "--image_dir")


def test_a_file_is_written_whole_and_nothing_else_stays(root):
    storage.write_whole(f"{root}/x", b"one")
    storage.write_whole(f"{root}/x", b"two")
    assert storage.list_folder(root) == ["x"]
    assert storage.read_file(f"{root}/x") == b"two"
