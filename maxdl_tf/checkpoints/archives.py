"""Unpacks untrusted archives: all files go into one folder, or nothing is written."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO

from maxdl_tf.errors import UserError
from maxdl_tf.files import disk_space

SUFFIXES = (".tar", ".tar.gz", ".tgz")

# L with the slots of Adam is 5.4 GB in a handful of files.
_MOST_BYTES = 50_000_000_000
_MOST_MEMBERS = 10_000
_LONGEST_NAME = 16_384  # Bytes of a long name or other attributes of a member; Linux allows paths of 4,096.
_MOST_HEADERS = 16_000_000  # Bytes of the headers and names of all members.
_LONGEST_END = 1 << 20  # Bytes after the last member. `tar` pads with zeros to a multiple of some kilobytes.
_BLOCK = 512

# First bytes of compressed files.
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


def unpack(archive: str, folder: str) -> None:
    """Writes the files of a tar archive, compressed or not, below an empty folder.

    All members are checked first. Only files and folders whose paths stay inside are allowed, each path once. Owners,
    permissions and times are not kept. The filters of `tarfile` are not used, because Python 3.9 may lack them.

    Args:
      archive: Path of the archive.
      folder: Folder that exists and is empty.

    Raises:
      UserError: The file is no archive, is damaged, has a member that is not allowed, or exceeds the free disk space.
    """
    with _user_errors(archive), _decompressed(archive) as content, tarfile.open(fileobj=content, mode="r:") as opened:
        files = _checked_members(archive, folder, opened)
        content.unbounded = True
        _check_end(archive, content, opened.offset)
        for member in files:
            path = os.path.join(folder, *_parts(member.name))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with opened.extractfile(member) as source, open(path, "xb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            if os.path.getsize(path) != member.size:
                raise UserError(f"{archive} is cut short in {member.name}; download it again")


def _check_end(archive: str, content: _BoundedReads, offset: int) -> None:
    """Checks what `tarfile` does not read: a block of zeros at the end, and the checksum of a compressed file."""
    content.seek(offset)
    if content.read(_BLOCK) != bytes(_BLOCK):
        raise UserError(f"{archive} is cut short after one of its members; download it again")
    if len(content.read(_LONGEST_END + 1)) > _LONGEST_END:
        raise UserError(f"{archive} was not unpacked: more data follow its end; is this the right archive?")


class _BoundedReads:
    """A file with bounded reads. `tarfile` reads a long name at once and keeps it, whatever its header announces.

    Attributes:
      unbounded: Whether all reads are allowed.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._left = _MOST_HEADERS
        self.unbounded = False
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not self.unbounded:
            self._left -= size
            if size > _LONGEST_NAME or self._left < 0:
                raise tarfile.ReadError(f"its names and headers are too long (at most {_LONGEST_NAME:,} bytes each)")
        return self._file.read(size)


@contextmanager
def _decompressed(archive: str) -> Iterator[_BoundedReads]:
    with open(archive, "rb") as file:
        start = file.read(max(map(len, _OPENERS)))
    opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), open)
    with opener(archive, "rb") as file:
        yield _BoundedReads(file)


def _checked_members(archive: str, folder: str, opened: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """The files of an archive, after a check of all members."""
    free = min(shutil.disk_usage(folder).free, _MOST_BYTES)
    files, paths, size = [], set(), 0
    # Each member is checked when it is read: seeking past a member of a terabyte would take long.
    for number, member in enumerate(opened, start=1):
        complaint = _complaint(member)
        if complaint:
            raise UserError(
                f"{archive} was not unpacked: its member {member.name!r} {complaint}; wanted files and folders below "
                "one folder, as in a published checkpoint; is this the right archive?"
            )
        if member.isfile():
            files.append(member)
            paths.add(_parts(member.name))
            size += member.size
        if size > free or number > _MOST_MEMBERS:
            raise UserError(
                f"{archive} was not unpacked: its first {number} members come to {size:,} bytes, and there is room for "
                f"{free:,} bytes and {_MOST_MEMBERS:,} members in {os.path.dirname(folder)}; set TMPDIR to another "
                "folder, or unpack it yourself and pass the folder"
            )
    if len(paths) < len(files) or any(path[:end] in paths for path in paths for end in range(1, len(path))):
        raise UserError(
            f"{archive} was not unpacked: two of its members have the same path; is this the right archive?"
        )
    return files


def _complaint(member: tarfile.TarInfo) -> str:
    """Why a member must not be unpacked, or an empty string."""
    if member.issym() or member.islnk():
        return f"is a link to {member.linkname!r}"
    if not (member.isdir() or member.isreg()) or member.issparse():
        return "is neither a plain file nor a folder"
    if member.name.startswith("/") or re.match(r"[A-Za-z]:|.*[\\\0]", member.name, re.DOTALL):
        return "has an absolute path, or a path of another operating system"
    if ".." in _parts(member.name) or (member.isreg() and not _parts(member.name)):
        return "has a path that leads outside"
    return ""


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name).parts


@contextmanager
def _user_errors(archive: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    # Python's reader also fails on hostile headers with ValueError, and with RecursionError on chains of them.
    except (
        tarfile.TarError,
        gzip.BadGzipFile,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        ValueError,
        RecursionError,
    ) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{archive} is not a whole tar archive: {reason}; download it again") from error
    except OSError as error:
        reason = disk_space.full_disk(error) or error.strerror or error
        raise UserError(f"cannot unpack {archive}: {reason}; check the file and the disk") from error
