"""Work shared by processes: `run` starts a function in several, and a `Communicator` lets them work together.

The strategies say how a Trainer merges what its workers compute. Processes come from launch.py, which is not imported
before it is used: a program of one process never loads Numba or multiprocess for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .strategies import AllReduce, Float16, Hogwild, LocalSGD, ParameterServer, PowerSGD, TopK

if TYPE_CHECKING:
    from .communicator import Communicator, SerialCommunicator
    from .launch import run

_HOMES = {"Communicator": "communicator", "SerialCommunicator": "communicator", "run": "launch"}

__all__ = [
    "AllReduce",
    "Communicator",
    "Float16",
    "Hogwild",
    "LocalSGD",
    "ParameterServer",
    "PowerSGD",
    "SerialCommunicator",
    "TopK",
    "run",
]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
