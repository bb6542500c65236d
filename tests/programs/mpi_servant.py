"""A rank of a group that serves many tests: it runs the functions that they send (helpers/servants.py)."""

import os

from mpi4py import MPI
from multiprocess import connection

from scratchnet.parallel.mpi.communicator import MpiCommunicator
from scratchnet.parallel.objects import dumps, loads


def forbidden(*args, **kwargs):
    raise AssertionError("an object was pickled for MPI")


def main():
    MPI.pickle.__init__(dumps=forbidden, loads=forbidden)  # mpi4py sends objects through these two alone
    comm = MpiCommunicator(timeout=60)
    with connection.Client(os.environ["GROUP"], "AF_UNIX") as channel:
        channel.send(comm.rank)
        while (data := channel.recv_bytes()) != b"end":
            fn, args = loads(data)
            channel.send_bytes(dumps(fn(comm, *args)))
    comm.close()


main()
