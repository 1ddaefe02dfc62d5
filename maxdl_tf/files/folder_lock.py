"""A folder that one process at a time writes to.

A process locks the file `.maxdl_lock` in the folder with `flock`. The kernel releases the lock when the process ends,
even by SIGKILL, so a file that a killed process left locks nothing. It holds the process id and the host, for the error
of other processes.

These folders are not locked: remote ones (gs://...), whose stores have no locks that end with a process; those of file
systems without `flock`; all on Windows.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket

from maxdl_tf.errors import UserError
from maxdl_tf.files import storage
from maxdl_tf.posix import fcntl

FILE = ".maxdl_lock"


class FolderLock:
    """Keeps other processes out of a folder while they lock it too.

        with FolderLock("runs/shapes", "--model_dir runs/shapes"):
            ...

    Entering creates the folder. Leaving removes the file, and the folders that entering created if they are empty.

    Args:
      folder: Path of the folder.
      name: Beginning of the errors.

    Raises:
      UserError: On entering: another process holds the lock, or the folder cannot be written to.
    """

    def __init__(self, folder: str, name: str):
        self._folder = folder
        self._name = name
        self._path = os.path.join(folder, FILE)
        self._descriptor: int | None = None
        self._created: list[str] = []

    def __enter__(self) -> FolderLock:
        try:
            if fcntl is None or storage.is_remote(self._folder):
                storage.make_folder(self._folder)
            else:
                self._created = _missing_folders(self._folder)
                self._descriptor = self._lock()
        except OSError as error:
            self._remove_created()
            reason = error.strerror or error
            raise UserError(f"{self._name} cannot be written to: {reason}; name another folder") from error
        return self

    def __exit__(self, *_) -> None:
        if self._descriptor is None:
            return
        if self.is_held:
            # While it is locked: afterwards it may be the file of another process.
            os.unlink(self._path)
        self._release()
        self._remove_created()

    @property
    def is_held(self) -> bool:
        """Whether the locked file is still in the folder, which someone may have removed or replaced."""
        return self._descriptor is None or _is_file_at(self._descriptor, self._path)

    def renew(self) -> None:
        """Creates and locks the folder again.

        Raises:
          UserError: As on entering: another process may have locked a new folder of this name.
        """
        self._release()
        self.__enter__()

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self) -> int:
        """Opens and locks the file; returns its descriptor."""
        while True:
            os.makedirs(self._folder, exist_ok=True)
            try:
                # Never through a link, whose target would be emptied.
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # The holder before removed the folder just now.
                continue
            try:
                self._lock_file(descriptor)
                if _is_file_at(descriptor, self._path):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # The holder before removed the file just now.

    def _lock_file(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = re.match(rb"process \d+ on [\w.-]+", os.read(descriptor, 300))
            holder = holder.group().decode() if holder else "another process"
            raise UserError(f"{self._name} is in use by {holder}; wait until it ends, or name another folder") from None
        except OSError:
            pass  # The file system has no locks.

    def _remove_created(self) -> None:
        for folder in self._created:
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def _missing_folders(folder: str) -> list[str]:
    """The folders that must be created, from the innermost outward."""
    missing, folder = [], os.path.abspath(folder)
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing


def _is_file_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False
