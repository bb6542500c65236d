"""Work shared by processes: `run` starts a function in several, and a `Communicator` lets them work together.

The strategies say how a Trainer merges what its workers compute. Processes come from launch.py, which is not imported
before it is used: a program of one process never loads Numba or multiprocess for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .strategies import AllReduce, Float16, Hogwild, LocalSGD, ParameterServer, PowerSGD, TopK

if TYPE_CHECKING:
    from .comm.communicator import Communicator, SerialCommunicator, world
    from .comm.job import is_first_rank
    from .mpi.communicator import MpiCommunicator
    from .pool.launch import run

_HOMES = {
    "Communicator": "comm.communicator",
    "MpiCommunicator": "mpi.communicator",
    "SerialCommunicator": "comm.communicator",
    "is_first_rank": "comm.job",
    "run": "pool.launch",
    "world": "comm.communicator",
}

__all__ = [
    "AllReduce",
    "Communicator",
    "Float16",
    "Hogwild",
    "LocalSGD",
    "MpiCommunicator",
    "ParameterServer",
    "PowerSGD",
    "SerialCommunicator",
    "TopK",
    "is_first_rank",
    "run",
    "world",
]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
