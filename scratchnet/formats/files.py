"""Files of others: read whole, within a limit, and never executed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import checks
from ..errors import CheckpointError, CheckpointNotFoundError, ConfigError

LARGEST = 2**31 - 1  # bytes of a protobuf message

# What people hand to a loader by mistake, by its first bytes.
PICKLES = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))


def read(what: str, path: Any, largest: int = LARGEST) -> bytes:
    """The content of a regular file. Raises CheckpointError, in one line that begins with the name of the file."""
    name = checks.path(what, path)
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer for ever.
        with open(name, "rb", opener=lambda file, flags: os.open(file, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{name}: expected a regular file, found a pipe or a device")
            if status.st_size > largest:
                raise CheckpointError(f"{name}: expected at most {largest} bytes, found {status.st_size}")
            return file.read(status.st_size)
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"{name}: expected a model, found no such file") from error
    except OSError as error:
        raise CheckpointError(f"{name}: expected a readable file: {error.strerror}") from error


@contextmanager
def named(path: Any) -> Iterator[None]:
    """Errors about the content of a file begin with its name; whatever a forged file breaks is one, too."""
    name = os.fsdecode(path)
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError, AttributeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{name}: expected a model, found {first:.160} ({type(error).__name__})") from error


def missing(package: str, user: str) -> ConfigError:
    """What to raise where an optional package that scratchnet.{user} needs is not there."""
    return ConfigError(f"scratchnet.{user}: expected the package {package}, found none; pip install {package}")
