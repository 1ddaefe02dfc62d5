"""What is unpacked stays in its folder; an archive that wants more is refused whole."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
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
