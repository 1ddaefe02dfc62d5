"""Unpacks an archive that a stranger made: its files land in one folder, or nothing is written at all."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import PurePosixPath

from maxdl_tf.errors import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz")

# L with the slots of Adam is 5.4 GB in a handful of files.
_MOST_BYTES = 50_000_000_000
_MOST_MEMBERS = 10_000


def unpack(archive: str, folder: str) -> None:
    """Writes the files of a tar archive, compressed or not, below an empty folder.

    All members are looked at first: only files and folders with paths that stay inside are taken, each path once. No
    owner, right or time comes along. This does not lean on the filters of `tarfile`, which Python 3.9 need not have.

    Args:
      archive: Its path.
      folder: Exists.

    Raises:
      UserError: It is no archive, it is damaged, a member is not as above, or it is larger than the disk's free space.
    """
    with _user_errors(archive), tarfile.open(archive) as opened:
        for member in _checked_members(archive, folder, opened):
            path = os.path.join(folder, *_parts(member.name))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with opened.extractfile(member) as source, open(path, "xb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            if os.path.getsize(path) != member.size:
                raise UserError(f"{archive} is cut short in {member.name}; download it again")


def _checked_members(archive: str, folder: str, opened: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """The files of an archive, if all of its members may be unpacked."""
    free = min(shutil.disk_usage(folder).free, _MOST_BYTES)
    files, paths, size = [], set(), 0
    # Each is checked as it comes: to look for the next one behind a member of a terabyte would take as long.
    for number, member in enumerate(opened, start=1):
        complaint = _complaint(member)
        if complaint:
            raise UserError(
                f"{archive} was not unpacked: its member {member.name!r} {complaint}; wanted files and folders below "
                "one folder, as in a checkpoint that was published; is this the right archive?"
            )
        if member.isfile():
            files.append(member)
            paths.add(_parts(member.name))
            size += member.size
        if size > free or number > _MOST_MEMBERS:
            raise UserError(
                f"{archive} was not unpacked: its first {number} members come to {size:,} bytes, and there is room for "
                f"{free:,} bytes and {_MOST_MEMBERS:,} members in {os.path.dirname(folder)}; name another place in "
                "TMPDIR, or unpack it yourself and give the folder"
            )
    if len(paths) < len(files) or any(path[:end] in paths for path in paths for end in range(1, len(path))):
        raise UserError(f"{archive} was not unpacked: two of its members have one path; is this the right archive?")
    return files


def _complaint(member: tarfile.TarInfo) -> str:
    """What forbids to unpack a member, or nothing."""
    if member.issym() or member.islnk():
        return f"is a link to {member.linkname!r}"
    if not (member.isdir() or member.isreg()) or member.issparse():
        return "is neither a plain file nor a folder"
    if member.name.startswith("/") or re.match(r"[A-Za-z]:|.*[\\\0]", member.name, re.DOTALL):
        return "has an absolute path, or one of another system"
    if ".." in _parts(member.name) or (member.isreg() and not _parts(member.name)):
        return "has a path that leads outside"
    return ""


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name).parts


@contextmanager
def _user_errors(archive: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, LZMAError) as error:
        raise UserError(f"{archive} is not a whole tar archive: {error}; download it again") from error
    except OSError as error:
        raise UserError(f"cannot unpack {archive}: {error.strerror or error}; check the file and the disk") from error
