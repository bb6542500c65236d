"""Where the tasks of a scheduler meet their driver: each connects once, says where it is, and is told what to start.

Messages are lines of JSON: nothing that comes from a socket is unpickled. A task shows the token of its job, which the
scheduler brought it. The connection stays open while the job runs, so that either side hears of the other's end.
"""

import hmac
import json
import secrets
import select
import socket
import time
from collections.abc import Callable
from typing import Any

LINE = 1 << 16  # bytes of a message
HELLO = 5.0  # seconds that a connection may take to say who it is


class Peer:
    """A connection, whose messages are lines of JSON."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):  # a machine that vanishes is missed after 25 seconds
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
        self.connection, self._lines = connection, connection.makefile("rb")

    def fileno(self) -> int:
        return self.connection.fileno()

    def send(self, **message: Any) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """The next message; empty when the other side has ended, or sends something else."""
        try:
            line = self._lines.readline(LINE)
            message = json.loads(line) if line.endswith(b"\n") else {}
        except (OSError, ValueError, RecursionError):
            return {}
        return message if isinstance(message, dict) else {}

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Does the other side end within so many seconds? It sends no message any more."""
        return bool(select.select([self], [], [], seconds)[0])

    def close(self) -> None:
        self._lines.close()
        self.connection.close()


class Rendezvous:
    """A context in which the driver listens, at `address` and a port of the system's choice unless one is given.

    token: what each task must show.
    """

    def __init__(self, address: str, port: int = 0, token: str = ""):
        self.token = token or secrets.token_hex(16)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.server = socket.create_server((address, port), family=family, backlog=1024)
        self.server.settimeout(0.1)
        self.port, self.peers = self.server.getsockname()[1], dict[int, tuple[Peer, dict[str, Any]]]()

    def gather(self, count: int, seconds: float, is_lost: Callable[[], bool]) -> bool:
        """Returns when `count` tasks have come, True, or after so many seconds, or when the job is lost.

        Then nobody else is let in: who calls later is refused, and may call the next start of the job.
        """
        deadline = time.monotonic() + seconds
        while len(self.peers) < count and time.monotonic() < deadline and not is_lost():
            try:
                connection, _ = self.server.accept()
            except TimeoutError:
                continue
            connection.settimeout(HELLO)
            peer = Peer(connection)
            hello = peer.receive()
            is_ours = hmac.compare_digest(str(hello.get("token")).encode(), self.token.encode())
            if is_ours and isinstance(hello.get("task"), int) and hello["task"] not in self.peers:
                connection.settimeout(None)
                self.peers[hello["task"]] = peer, hello
            else:
                peer.close()
        self.server.close()
        return len(self.peers) >= count

    def close(self) -> None:
        """All tasks hear of the end, also those that have not come yet."""
        self.server.close()
        for peer, _ in self.peers.values():
            peer.close()

    def __enter__(self) -> "Rendezvous":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def connect(address: str, port: int, seconds: float, **hello: Any) -> Peer | None:
    """The driver, once it knows who calls; None if it has ended, or cannot be reached within so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = socket.create_connection((address, port), timeout=max(1.0, seconds))
        except OSError:  # the driver may not listen yet, or no more; its name may not be known yet
            if time.monotonic() > deadline:
                return None
            time.sleep(0.2)
            continue
        connection.settimeout(None)
        peer = Peer(connection)
        peer.send(**hello)
        return peer
