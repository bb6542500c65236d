"""Hosts on one machine, for programs that span several: network namespaces with addresses of their own, and a switch.

    with Hosts(3) as hosts:
        hosts.limit(100e6)                                  # bits a second of each host's link
        subprocess.run(hosts.mpirun(3, "python", "train.py"))

It needs Linux, root, iproute2 and Open MPI, which starts ranks on the other hosts through an agent that enters a
namespace instead of calling ssh. Leaving the context removes everything.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

SUBNET = "10.213.77"
DEVICE = "eth0"
LATENCY = "1s"  # how long data may wait for a limited link before packets are dropped: longer than TCP lets it grow

AGENT = """#!/bin/sh
# What Open MPI calls for ssh: agent HOST COMMAND...
host=${{1##*.}}; shift
export TMPDIR={folder}/host$host
exec ip netns exec {name}-$host unshare --uts sh -c "hostname host$host; $*"
"""


def reason_against_hosts() -> str | None:
    """Why hosts cannot be made here, or None."""
    for program in ("ip", "tc", "mpirun", "unshare"):
        if not shutil.which(program):
            return f"expected the program {program}, found none"
    if "Open MPI" not in subprocess.run(["mpirun", "--version"], capture_output=True, text=True).stdout:
        return "expected Open MPI, which takes an agent instead of ssh, found another MPI"
    name = f"sn{os.getpid()}-try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"expected to be allowed network namespaces, found: {tried.stderr.strip()}"
    _call("ip", "netns", "delete", name)
    return None


class Hosts:
    """A context with `count` hosts, 1 to 254, that a switch joins; their addresses are SUBNET.1, SUBNET.2, ..."""

    def __init__(self, count: int):
        self.count, self.name = count, f"sn{os.getpid()}"
        self._folder = Path(tempfile.mkdtemp(prefix="scratchnet-hosts-"))
        self._spaces: list[str] = []
        self.addresses = [f"{SUBNET}.{i + 1}" for i in range(count)]

    def __enter__(self) -> "Hosts":
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        switch = self._space("switch")
        _call("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _call("ip", "-n", switch, "link", "set", "bridge", "up")
        for i, address in enumerate(self.addresses, 1):
            host = self._space(str(i))
            (self._folder / f"host{i}").mkdir()
            _call("ip", "-n", host, "link", "add", DEVICE, "type", "veth", "peer", "name", f"port{i}", "netns", switch)
            _call("ip", "-n", host, "address", "add", f"{address}/24", "dev", DEVICE)
            for space, device in ((host, "lo"), (host, DEVICE), (switch, f"port{i}")):
                _call("ip", "-n", space, "link", "set", device, "up")
            _call("ip", "-n", switch, "link", "set", f"port{i}", "master", "bridge")
        agent = self._folder / "agent"
        agent.write_text(AGENT.format(folder=self._folder, name=self.name))
        agent.chmod(0o755)

    def _space(self, which: str) -> str:
        _call("ip", "netns", "add", f"{self.name}-{which}")
        self._spaces.append(f"{self.name}-{which}")
        return self._spaces[-1]

    def limit(self, rate: float | None) -> None:
        """Let each host send at most `rate` bits a second (a token bucket); None: as many as it can."""
        for space in self._spaces[1:]:
            if rate is None:
                subprocess.run(["tc", "-n", space, "qdisc", "delete", "dev", DEVICE, "root"], capture_output=True)
            else:
                bucket = ("rate", f"{rate:.0f}bit", "burst", f"{max(16_000, rate / 8 / 100):.0f}", "latency", LATENCY)
                _call("tc", "-n", space, "qdisc", "replace", "dev", DEVICE, "root", "tbf", *bucket)

    def cut(self, host: int) -> None:
        """Cut host number `host`, counted from 0, off from all others, without any notice to them."""
        _call("ip", "-n", self._spaces[0], "link", "set", f"port{host + 1}", "down")

    def sent(self, host: int) -> int:
        """Bytes that a host has sent."""
        counter = f"/sys/class/net/{DEVICE}/statistics/tx_bytes"
        return int(subprocess.check_output(["ip", "netns", "exec", self._spaces[host + 1], "cat", counter]))

    def mpirun(self, ranks: int, *command: str) -> list[str]:
        """The command line that starts `ranks` ranks, block by block on the hosts; mpirun itself runs on the first."""
        slots = [ranks // self.count + (i < ranks % self.count) for i in range(self.count)]
        hosts = ",".join(f"{a}:{n}" for a, n in zip(self.addresses, slots, strict=True) if n)
        settings = {
            "plm_rsh_agent": str(self._folder / "agent"),
            "btl": "tcp,self,vader",
            "btl_tcp_if_include": DEVICE,
            "oob_tcp_if_include": DEVICE,
            "btl_vader_single_copy_mechanism": "none",
        }
        options = [word for name, value in settings.items() for word in ("--mca", name, value)]
        options += [word for name in os.environ if name.startswith("SCRATCHNET_") for word in ("-x", name)]
        start = ["env", f"TMPDIR={self._folder}/host1", "ip", "netns", "exec", f"{self.name}-1", "unshare", "--uts"]
        inner = ["mpirun", "--allow-run-as-root", "--bind-to", "none", *options, "--host", hosts, "-n", str(ranks)]
        return [*start, "sh", "-c", 'hostname host1; exec "$@"', "sh", *inner, *command]

    def __exit__(self, *exc_info: object) -> None:
        for space in self._spaces:
            left = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout
            for process in map(int, left.split()):  # for example the daemons of a host that was cut off
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
