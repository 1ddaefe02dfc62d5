"""What is unpacked stays in its folder; an archive that wants more is refused whole."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
from collections import namedtuple

import pytest

from maxdl_tf.checkpoints import archives
from maxdl_tf.checkpoints.archives import unpack
from maxdl_tf.errors import UserError


def _member(name, type_=tarfile.REGTYPE, linkname="", content=b"content"):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = type_, linkname, 0o7777
    member.size = len(content) if type_ == tarfile.REGTYPE else 0
    return member, content


def _archive(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "outer" / "folder"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_files_and_folders(tmp_path, folder, mode):
    members = [
        _member("./model", tarfile.DIRTYPE),
        _member("./model/ckpt-1.index", content=b"index"),
        _member("model/deep/er/data", content=bytes(3_000_000)),
    ]
    unpack(_archive(tmp_path / "a.tar", *members, mode=mode), str(folder))
    assert (folder / "model/ckpt-1.index").read_bytes() == b"index"
    assert (folder / "model/deep/er/data").read_bytes() == bytes(3_000_000)
    assert not (folder / "model/ckpt-1.index").stat().st_mode & 0o6111, "rights came along"


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        (_member("../outside"), "leads outside"),
        (_member("model/../../outside"), "leads outside"),
        (_member("model/.."), "leads outside"),
        (_member("."), "leads outside"),
        (_member("/tmp/outside"), "absolute"),
        (_member("//outside"), "absolute"),
        (_member("C:/outside"), "absolute"),
        (_member("..\\outside"), "another operating system"),
        (_member("../outside", tarfile.DIRTYPE), "leads outside"),
        (_member("link", tarfile.SYMTYPE, "/etc/passwd"), "is a link to '/etc/passwd'"),
        (_member("link", tarfile.SYMTYPE, "inside"), "is a link"),
        (_member("link", tarfile.LNKTYPE, "../outside"), "is a link"),
        (_member("device", tarfile.CHRTYPE), "neither a plain file nor a folder"),
        (_member("device", tarfile.BLKTYPE), "neither a plain file nor a folder"),
        (_member("pipe", tarfile.FIFOTYPE), "neither a plain file nor a folder"),
        (_member("good"), "two of its members have the same path"),
        (_member("good/below"), "two of its members have the same path"),
    ],
    ids=lambda value: value[0].name if isinstance(value, tuple) else None,
)
def test_one_bad_member_is_enough(tmp_path, folder, member, complaint):
    path = _archive(tmp_path / "a.tar.gz", _member("good"), member)
    with pytest.raises(UserError, match=complaint):
        unpack(path, str(folder))
    assert os.listdir(folder) == [] and os.listdir(folder.parent) == ["folder"]


def test_what_is_too_large(tmp_path, folder, monkeypatch):
    path = _archive(tmp_path / "a.tar.gz", _member("a", content=bytes(600)), _member("b", content=bytes(600)))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: usage(0, 0, 1000))
    with pytest.raises(UserError, match="come to 1,200 bytes, and there is room for 1,000 bytes"):
        unpack(path, str(folder))
    monkeypatch.setattr(archives, "_MOST_MEMBERS", 1)
    with pytest.raises(UserError, match="room for 1,000 bytes and 1 members"):
        unpack(path, str(folder))
    assert os.listdir(folder) == []


def test_what_is_damaged_or_no_archive(tmp_path, folder):
    path = _archive(tmp_path / "a.tar", _member("a", content=os.urandom(100_000)), mode="w")
    whole = (tmp_path / "a.tar").read_bytes()
    packed = gzip.compress(whole)
    for content in (whole[:50_000], packed[: len(packed) // 2], b"no archive", b""):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(UserError, match="download it again"):
            unpack(path, str(folder))
    with pytest.raises(UserError, match=r"cannot unpack .*No such file"):
        unpack(str(tmp_path / "nowhere.tar"), str(folder))


def _long_name(size: int) -> bytes:
    """A header that announces a name of this many bytes, and the name."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, size
    return header.tobuf(tarfile.GNU_FORMAT) + b"a" * size + bytes(-size % 512)


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    "content",
    [
        _long_name(50_000_000),
        _long_name(16_000) * 2000,
        _long_name(3) * 20_000,  # Each is the name of the next.
        b"".join(tarfile.TarInfo(f"a{i}").tobuf() for i in range(40_000)),
    ],
    ids=["one long name", "long names of a name", "a chain of names", "many members"],
)
def test_headers_take_little_memory(tmp_path, folder, compress, content):
    (tmp_path / "a.tar").write_bytes(compress(content + _member("a")[0].tobuf() + bytes(10_240)))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"not a whole tar archive|was not unpacked"):
            unpack(str(tmp_path / "a.tar"), str(folder))
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()
    assert os.listdir(folder) == []


def test_a_long_path_is_kept(tmp_path, folder):
    name = "/".join(["folder" * 30] * 5) + "/file"
    unpack(_archive(tmp_path / "a.tar.gz", _member(name)), str(folder))
    assert (folder / name).read_bytes() == b"content"


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_the_checksum_of_the_compression_is_read(tmp_path, folder, mode):
    path = _archive(tmp_path / "a.tar", _member("a", content=os.urandom(5000)), mode=mode)
    whole = (tmp_path / "a.tar").read_bytes()
    for place in range(-16, -4, 2):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(UserError, match=r"download it again|check the file"):
            unpack(path, str(folder))
        assert os.listdir(folder) == []


def test_an_archive_that_ends_between_two_members_or_goes_on_behind_its_end(tmp_path, folder):
    path = _archive(tmp_path / "a.tar", _member("a"), _member("b"), mode="w")
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:1024])  # The header and the block of the first member.
    with pytest.raises(UserError, match="cut short after one of its members; download it again"):
        unpack(path, str(folder))
    (tmp_path / "a.tar").write_bytes(gzip.compress(whole + bytes(3_000_000)))
    with pytest.raises(UserError, match="more data follow its end"):
        unpack(path, str(folder))
    assert os.listdir(folder) == []
