"""Files that are whole or absent, whatever happens to the process or the disk while they are written."""

import contextlib
import errno
import fcntl
import os
import secrets
from pathlib import Path

TEMPORARY = ".scratchnet-tmp"  # the end of the name of a file that is being written


def write_atomically(path: str | os.PathLike[str], blob: bytes) -> None:
    """Write beside, fsync, rename over, fsync the folder: at every instant `path` is the old or the new file.

    Raises the `OSError` of the step that failed, with the temporary file gone.
    """
    target = os.path.realpath(os.fsdecode(path))
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # the kernel drops it if we die: a sign of life for cleaners
        rest = memoryview(blob)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)
    _fsync_folder(folder)


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
