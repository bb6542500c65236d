"""Files that are whole or absent, whatever happens to the process or the disk while they are written."""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from pathlib import Path

TEMPORARY = ".scratchnet-tmp"  # the end of the name of a file that is being written


def write_atomically(path: str | os.PathLike[str], blob: bytes) -> None:
    """Write beside, fsync, rename over, fsync the folder: at every instant `path` is the old or the new file.

    A file that is there keeps its permissions. Raises the `OSError` of the step that failed, with the temporary file
    gone; also for what is no regular file, which a rename would replace by one, or may not be written.
    """
    target = os.path.realpath(os.fsdecode(path))
    folder, name = os.path.split(target)
    mode = _mode_of(target)
    temporary = os.path.join(folder, f".{_shortened(name)}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666 if mode is None else 0o600)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # the kernel drops it if we die: a sign of life for cleaners
        rest = memoryview(blob)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if mode is not None:
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)
    _fsync_folder(folder)


def _mode_of(target: str) -> int | None:
    """The permissions of the file that is there; None if there is none."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "expected a regular file, found a device, pipe or socket", target)
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), target)
    return stat.S_IMODE(status.st_mode)


def _shortened(name: str, size: int = 160) -> str:
    """A file's name may have 255 bytes; what is added to it takes some."""
    return os.fsdecode(os.fsencode(name)[:size]) if len(os.fsencode(name)) > size else name


def _fsync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: a file system whose folders cannot be synced
            raise
    finally:
        os.close(descriptor)


def remove_dead_temporaries(folder: Path) -> None:
    """Remove what writers that died in the middle of `write_atomically` left in a folder."""
    for path in folder.glob(f".*{TEMPORARY}"):
        # A living writer holds the lock of its file, so taking it fails; process numbers are reused, locks are not.
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
