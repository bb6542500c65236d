"""Tasks meet their driver: only those that show the token of the job, and nothing that they send is executed."""

import pickle
import socket
import threading
import time

import pytest

from scratchnet.parallel.clusters.rendezvous import LINE, Rendezvous, connect


def test_a_task_that_shows_the_token_gets_its_order_and_hears_of_the_end():
    with Rendezvous("127.0.0.1") as meeting:
        peers = [connect("127.0.0.1", meeting.port, 5, token=meeting.token, task=n, machine="m") for n in (1, 0)]
        assert meeting.gather(2, 5, lambda: False)
        assert {n: about["machine"] for n, (_, about) in meeting.peers.items()} == {0: "m", 1: "m"}
        meeting.peers[1][0].send(command=["a", "b c"])
        assert peers[0].receive() == {"command": ["a", "b c"]} and not peers[0].has_ended()
        peers[1].close()
        assert meeting.peers[0][0].has_ended(5) and not meeting.peers[1][0].has_ended()
    assert peers[0].has_ended(5) and peers[0].receive() == {}
    peers[0].close()


class Canary:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize("said", [
    b'{"task": 0, "token": "another"}\n', b'{"task": 0}\n', b"[]\n", b"\n", b"", b'{"token": "TOKEN"}\n',
    b'{"token": "TOKEN", "task": "0"}\n', b'{"token": "TOKEN", "task": 0}', b"x" * (LINE + 10) + b"\n",
    pickle.dumps(Canary()), b"[" * 60000 + b"\n",
])  # fmt: skip
def test_who_says_anything_else_is_sent_away(said):
    with Rendezvous("127.0.0.1") as meeting, socket.create_connection(("127.0.0.1", meeting.port)) as stranger:
        stranger.sendall(said.replace(b"TOKEN", meeting.token.encode()))
        stranger.shutdown(socket.SHUT_WR)
        own = connect("127.0.0.1", meeting.port, 5, token=meeting.token, task=3)
        assert meeting.gather(1, 5, lambda: False) and list(meeting.peers) == [3]
        own.close()


def test_every_wait_has_an_end():
    with Rendezvous("127.0.0.1") as meeting:
        assert not meeting.gather(1, 0.2, lambda: False)
        port = meeting.port
    with Rendezvous("127.0.0.1") as meeting:
        assert not meeting.gather(1, 60, lambda: True)
    start = time.monotonic()
    assert connect("127.0.0.1", port, 0.3, task=0) is None and time.monotonic() - start < 5


def test_a_task_may_call_before_its_driver_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = []
    caller = threading.Thread(target=lambda: found.append(connect("127.0.0.1", port, 10, token="t", task=0)))
    caller.start()
    time.sleep(0.3)
    with Rendezvous("127.0.0.1", port, "t") as meeting:
        assert meeting.gather(1, 10, lambda: False)
        caller.join()
        found[0].close()
