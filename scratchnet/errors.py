"""Every error that scratchnet raises on purpose.

One base class, so that a script can catch them all; each is also the built-in type that a user of
NumPy or PyTorch would catch. A message is one line: the op or file, what was expected, what came.
"""


class ScratchnetError(Exception):
    """Base class of all errors raised on purpose by scratchnet."""


class ShapeError(ScratchnetError, ValueError):
    """Arrays whose shapes do not fit the op."""


class DtypeError(ScratchnetError, TypeError):
    """A dtype that the op does not take, or two that do not go together."""


class DeviceError(ScratchnetError, RuntimeError):
    """An unknown device, or tensors of two devices in one op."""


class IndexOutOfRangeError(ScratchnetError, IndexError):
    """An index, a label or an axis outside its range."""


class GradientError(ScratchnetError, RuntimeError):
    """A gradient that cannot be had: no graph, a freed graph, an input changed since the forward pass."""


class NonFiniteError(ScratchnetError, FloatingPointError):
    """A loss or gradient that is NaN or infinite."""


class ConfigError(ScratchnetError, ValueError):
    """An argument outside its range."""


class UnknownAttributeError(ScratchnetError, AttributeError):
    """An attribute that would be set and never read, or that is fixed once the object is made."""


class MissingMethodError(ScratchnetError, NotImplementedError):
    """A method that a subclass has to write."""


class JitError(ScratchnetError, RuntimeError):
    """A step that cannot be recorded, or a recorded one that is called in another way."""


class DataError(ScratchnetError, ValueError):
    """A data file or data set that is damaged, of another format, or does not fit together."""


class DataNotFoundError(DataError, FileNotFoundError):
    """A data set that is not on this machine; the message says how to get it."""


class CheckpointError(ScratchnetError, ValueError):
    """A checkpoint that is damaged, foreign, or of another model."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No checkpoint where one was expected."""


class SharedMemoryError(ScratchnetError, MemoryError):
    """Too little memory, or none of the kind that processes share."""


class CollectiveError(ScratchnetError, RuntimeError):
    """A collective call that cannot end: the ranks made different calls, or one of them returned or died."""


class WorkerError(ScratchnetError, RuntimeError):
    """A worker process that raised, was killed or ended early.

    rank: its rank. signal: the number of the signal that killed it, or None. traceback: its traceback as text, or None;
    it is also a note of the error, so that Python prints it.
    """

    def __init__(self, message: str, rank: int, signal: int | None = None, traceback: str | None = None):
        super().__init__(message)
        self.rank, self.signal, self.traceback = rank, signal, traceback
        if traceback:
            self.add_note(traceback)

    def __reduce__(self):
        return type(self), (str(self), self.rank, self.signal, self.traceback)


class CallbackError(ScratchnetError, RuntimeError):
    """A callback of a Trainer that raised; its own exception is the cause. The run was saved,
    unless it had changed dtypes or groups, which no checkpoint can change."""


class DatabaseError(ScratchnetError, ConnectionError):
    """No database answers, or it refuses what a run needs."""


class ContractError(ScratchnetError, AssertionError):
    """A kernel that breaks its contract; raised by scratchnet.testing."""


class GradcheckError(ScratchnetError, AssertionError):
    """A gradient that differs from the difference quotient; raised by scratchnet.testing."""


__all__ = [name for name, value in list(globals().items()) if isinstance(value, type)]
