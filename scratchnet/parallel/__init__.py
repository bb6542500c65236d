"""Work shared by processes: `run` starts a function in several, and a `Communicator` lets them work together.

The strategies say how a Trainer merges what its workers compute. Nothing here loads Numba, multiprocess or MPI before
it is used.
"""

from .comm import collectives
from .comm.collectives import all_reduce_cost
from .comm.communicator import Communicator, SerialCommunicator
from .comm.job import is_first_rank
from .comm.virtual import simulate_all_reduce
from .compression import BFloat16, Float16, PowerSGD, TopK
from .groups import run, world
from .mpi.communicator import MpiCommunicator
from .strategies import AllReduce, Hogwild, LocalSGD, ParameterServer, Pipeline, TensorParallel

__all__ = [
    "AllReduce",
    "BFloat16",
    "Communicator",
    "Float16",
    "Hogwild",
    "LocalSGD",
    "MpiCommunicator",
    "ParameterServer",
    "Pipeline",
    "PowerSGD",
    "SerialCommunicator",
    "TensorParallel",
    "TopK",
    "all_reduce_cost",
    "collectives",
    "is_first_rank",
    "run",
    "simulate_all_reduce",
    "world",
]
