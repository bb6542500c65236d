"""The checkpoints of one training run: the newest stay, damaged ones are passed over, no other run interferes."""

import contextlib
import errno
import fcntl
import itertools
import os
import re
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, ConfigError
from .atomic import remove_dead_temporaries
from .checkpoint import load, save

LOCK = ".scratchnet-lock"
NO_LOCKS = errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL  # Lustre without -o flock, some NFS and FUSE
STEP_DIGITS = 12  # fixed, so that names sort as steps do


class CheckpointFolder:
    """The newest `keep` checkpoints of one training run, in a folder that no other run can open meanwhile.

    `with CheckpointFolder("run") as checkpoints: checkpoints.save(step, model=model)` writes
    `run/checkpoint-000000000120.safetensors` and then, with that one safely on disk, removes the oldest. The lock dies
    with the process, so there is nothing to clean up after a crash; temporary files of dead writers go at the start.
    Files that are not named by this class are never touched.

    Raises `CheckpointError` when the folder is in use or cannot be made, `ConfigError` for `keep < 1`.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2):
        if keep < 1:
            raise ConfigError(f"keep: expected at least 1 checkpoint, got {keep}")
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._damaged: set[int] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock: int | None = _lock_folder(self.folder)
            remove_dead_temporaries(self.folder)
        except OSError as error:
            raise CheckpointError(f"{folder}: expected a folder to write to: {error.strerror}") from error

    def steps(self) -> list[int]:
        """The steps that have a checkpoint here, oldest first, damaged ones included."""
        try:
            names = os.listdir(self.folder)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: expected a folder of checkpoints: {error.strerror}") from error
        matches = (re.fullmatch(rf"checkpoint-([0-9]{{{STEP_DIGITS}}})\.safetensors", name) for name in names)
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        """The file of a step's checkpoint, there or not."""
        return self.folder / f"checkpoint-{step:0{STEP_DIGITS}d}.safetensors"

    def save(self, step: int, /, **state: Any) -> Path:
        """Save `state` as `sn.save` does; once it is on disk, remove what is older than the newest `keep` whole ones.

        A step before one that is already here would never be resumed from, so it is refused.
        """
        if self._lock is None:
            raise CheckpointError(f"{self.folder}: expected an open CheckpointFolder, got a closed one")
        if not (isinstance(step, int | np.integer) and 0 <= step < 10**STEP_DIGITS):
            raise ConfigError(f"step: expected an integer from 0 to 10**{STEP_DIGITS} - 1, got {step!r}")
        self.require_newest(step)
        path = self.path(step)
        save(path, **state)
        self._damaged.discard(step)
        oldest_kept = self._whole_steps()[-self.keep :][0]
        for old in self.steps():
            if old < oldest_kept:
                self._remove(old)
        return path

    def require_newest(self, step: int) -> None:
        """Raises CheckpointError for a step before one that is saved here."""
        newest = max(self._whole_steps(), default=step)
        if step < newest:
            raise CheckpointError(
                f"{self.folder}: expected a step from {newest} on, which is saved here already, got {step}: "
                "resume from it, or train in another folder"
            )

    def load_latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest whole checkpoint as (step, state), with a warning for every damaged one; None in an empty folder.

        Raises `CheckpointError` when there are checkpoints and all are damaged.
        """
        reasons = []
        for step in reversed(self.steps()):
            try:
                return step, load(self.path(step))
            except CheckpointError as error:
                self._damaged.add(step)
                reasons.append(str(error))
                warnings.warn(f"{error}: trying the one before it", RuntimeWarning, stacklevel=2)
        if reasons:
            raise CheckpointError(
                f"{self.folder}: expected a whole checkpoint, found only damaged ones: {'; '.join(reasons)}"
            )
        return None

    def close(self) -> None:
        """Let other runs use the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "CheckpointFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _whole_steps(self) -> list[int]:
        return [step for step in self.steps() if step not in self._damaged]

    def _remove(self, step: int) -> None:
        try:
            os.unlink(self.path(step))
        except OSError as error:  # the new checkpoint is safe: no reason to stop the training
            warnings.warn(
                f"{self.path(step)}: old checkpoint not removed: {error.strerror}", RuntimeWarning, stacklevel=3
            )


def _lock_folder(folder: Path) -> int:
    """Hold the folder's lock file; the kernel lets go when the returned descriptor is closed, by us or by our death.

    The file itself stays: removing it would let two processes lock two different files of that name.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            warnings.warn(
                f"{folder}: this file system has no locks ({error.strerror}): let no second run use the folder",
                RuntimeWarning, stacklevel=4,
            )  # fmt: skip
            return descriptor
        owner = os.pread(descriptor, 20, 0).decode(errors="replace")
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise CheckpointError(f"{folder}: cannot be locked ({error.strerror})") from error
        raise CheckpointError(f"{folder}: expected a free folder, found another run in it (process {owner})") from error
    with contextlib.suppress(OSError):  # only for the message above
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def new_folder(parent: str | os.PathLike[str], make: bool = True) -> Path:
    """A folder `parent`/DATE-TIME that no other run has, not even one that began in the same second.

    make: of several processes of a run only one makes it. Raises CheckpointError where it cannot be made.
    """
    now = f"{datetime.now():%Y%m%d-%H%M%S}"
    for name in itertools.chain([now], (f"{now}-{i}" for i in itertools.count(2))):
        try:
            if make:
                os.makedirs(Path(parent) / name)
            return Path(parent) / name
        except FileExistsError:  # of another run
            continue
        except OSError as error:
            raise CheckpointError(f"{parent}: expected a folder to write to: {error.strerror}") from error
    raise AssertionError
