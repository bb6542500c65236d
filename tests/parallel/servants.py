"""A group of processes that stays for many tests: each test sends a function, which all ranks run."""

from scratchnet.parallel.arena import Arena, ArenaCommunicator, warm_up
from scratchnet.parallel.launch import Workers, dumps, loads


def serve(channel, rank, arena):
    comm = ArenaCommunicator(arena, rank, timeout=60)
    while True:
        fn, args = loads(channel.recv_bytes())
        channel.send_bytes(dumps(fn(comm, *args)))


class Group:
    """`ask(fn, *args)` gives what fn(comm, *args) returns on each rank."""

    def __init__(self, size):
        self.size, self.arena = size, Arena(size)
        warm_up()
        self.workers = Workers(size, serve, self.arena)

    def ask(self, fn, *args):
        for channel in self.workers.channels:
            channel.send_bytes(dumps((fn, args)))
        return [loads(channel.recv_bytes()) for channel in self.workers.channels]

    def end(self):
        self.workers.end()
        self.workers = self.arena = None
