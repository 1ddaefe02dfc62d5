"""Files and folders: here and where tf.io.gfile reaches, for which file:// stands, they behave alike."""

from __future__ import annotations

import os

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


def test_a_pipe_gets_the_content_and_stays_a_pipe(tmp_path):
    """As in `--json /dev/stdout` and `--json >(command)`: a renamed file would take the place of the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        storage.write_whole(str(pipe), b"content")
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert pipe.is_fifo() and storage.list_folder(str(tmp_path)) == ["pipe"]


def test_links_in_a_circle_repeat_no_files(tmp_path):
    """Real folders come first; a folder behind several links is searched once."""
    root, other = tmp_path / "root", tmp_path / "other"
    for path in (root / "b" / "x.png", other / "y.png"):
        path.parent.mkdir(parents=True)
        path.touch()
    for link, target in (("a", "."), ("c", "../other"), ("d", "../other"), ("e", "b"), ("b/up", "..")):
        (root / link).symlink_to(target)
    (other / "back").symlink_to(root)
    assert storage.find_files(str(root), (".png",)) == ["b/x.png", "c/y.png"]


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # Opening it would wait forever.
    (tmp_path / "zero").symlink_to("/dev/zero")  # Reading it would never end.
    for name in ("pipe", "zero"):
        with pytest.raises(UserError, match=f"{name}: a pipe, socket or device; expected a regular file"):
            storage.read_file(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        storage.read_file(tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300])
def test_names_that_no_file_can_have_are_user_errors(tmp_path, name):
    with pytest.raises(UserError, match="cannot be read"):
        storage.read_file(f"{tmp_path}/{name}")


def test_a_name_that_is_not_utf_8_is_read(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.png")
    path.write_bytes(b"x")
    assert storage.read_file(path) == b"x"


@pytest.mark.parametrize(
    "name, inside",
    [
        ("a.jpg", "a.jpg"),
        ("b/../a.jpg", "a.jpg"),
        ("./b/a.jpg", "b/a.jpg"),
        ("..a.jpg", "..a.jpg"),
        ("", None),
        ("../a.jpg", None),
        ("b/../../images/a.jpg", None),
        ("b/../../other/a.jpg", None),
        ("/dev/zero", None),
        ("a.jpg\0/../../x", None),
        ("gs://bucket/a.jpg", None),
    ],
)
def test_names_from_files_are_confined_to_their_folder(root, name, inside):
    if inside is None:
        with pytest.raises(UserError, match=r"leads out of the folder .*images; give a folder that contains it"):
            storage.path_inside(f"{root}/images", name)
    else:
        assert storage.path_inside(f"{root}/images", name) == f"{root}/images/{inside}"


def test_an_absolute_name_is_allowed_below_the_folder(tmp_path):
    """A user who trusts a file with absolute names gives the folder /."""
    assert storage.path_inside("/", "/x/a.jpg") == "/x/a.jpg"
    assert storage.path_inside(tmp_path / "images", str(tmp_path / "images" / "a.jpg")) == f"{tmp_path}/images/a.jpg"


def test_what_a_killed_write_left_goes_and_nothing_else(root):
    for name in (f".{'0f' * 16}.partial", ".notes.partial", "x.partial", f"{'0f' * 16}.partial"):
        storage.write_file(f"{root}/{name}", b"")
    storage.remove_partial_files(root)
    assert storage.list_folder(root) == [".notes.partial", f"{'0f' * 16}.partial", "x.partial"]
    storage.remove_partial_files(f"{root}/none")


def test_of_a_link_to_a_folder_only_the_link_goes(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("x")
    (tmp_path / "link").symlink_to("folder")
    storage.remove_folder(str(tmp_path / "link"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "precious"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("run [v2]/a[1].png", ["run [v2]/a[1].png"]),
        ("run [v2]/*.png", ["run [v2]/a1.png", "run [v2]/a[1].png"]),
        ("run [v2]/a[1]*", ["run [v2]/a1.png"]),  # A pattern: no file has this name.
        ("run */a1.png", ["run [v2]/a1.png", "run v/a1.png"]),
        ("run [v2]*/a1.png", ["run v/a1.png"]),
        ("what?*", ["what?*"]),
        ("**/what*", ["what now", "what?*"]),
        ("run [v2]", []),  # A folder is no file.
        ("none/*", []),
        ("none/", []),
        ("", []),
    ],
)
def test_a_path_that_exists_is_no_pattern(tmp_path, monkeypatch, pattern, names):
    for name in ("run [v2]/a[1].png", "run [v2]/a1.png", "run v/a1.png", "what?*", "what now"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert storage.matching_files(f"{tmp_path}/{pattern}") == [f"{tmp_path}/{name}" for name in names]
    monkeypatch.chdir(tmp_path)
    assert storage.matching_files(pattern) == names


def test_remote_patterns(tmp_path):
    for name in ("a[1].png", "a1.png", "folder.png"):
        (tmp_path / name).write_bytes(b"") if name != "folder.png" else (tmp_path / name).mkdir()
    root = f"file://{tmp_path}"
    assert storage.matching_files(f"{root}/a*.png") == [f"{root}/a1.png", f"{root}/a[1].png"]
    assert storage.matching_files(f"{root}/a[1].png") == [f"{root}/a[1].png"]
    assert storage.matching_files(f"{root}/folder.png") == []
