"""Hosts of their own on this machine: network namespaces with host names, on one switch.

They take root and iproute2. Each has its address, its processes, and a cable that can be pulled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from time import sleep

from benchmarks.join import _ip

ADDRESS = "10.79.2.{}"
DIST_NET = sys.executable, "-P", "-m", "dist_net"


class Host:
    """A host with the number ``number``; its commands run in ``directory``."""

    def __init__(self, switch: str, number: int, directory: Path) -> None:
        self.name = f"{switch}-{number}"
        self.address = ADDRESS.format(number)
        self.directory = directory / f"host-{number}"
        self.directory.mkdir()
        self._switch, self._cable = switch, f"cable{number}"
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")
        ends = ("wire", "type", "veth", "peer", "name", self._cable, "netns", switch)
        _ip("-n", self.name, "link", "add", *ends)
        _ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "wire")
        _ip("-n", self.name, "link", "set", "wire", "up")
        _ip("-n", self.name, "route", "add", "default", "via", ADDRESS.format(254))
        _ip("-n", switch, "link", "set", self._cable, "master", "switch")
        self.plug()

    def run(self, *words: str, said: str = "said", given: str = "") -> subprocess.Popen[bytes]:
        """Start ``dist-net WORDS``; ``given`` is its input, and the file ``said`` its output."""
        named = f'hostname {self.name}; exec ip netns exec {self.name} "$@"'
        command = ["unshare", "--uts", "sh", "-c", named, "sh", *DIST_NET, *words]
        with (self.directory / said).open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.directory, stdin=subprocess.PIPE, stdout=output, stderr=output
            )
        assert process.stdin is not None
        process.stdin.write(f"{given}\n".encode())
        process.stdin.close()
        return process

    def said(self, name: str = "said") -> str:
        with suppress(FileNotFoundError):
            return (self.directory / name).read_text()
        return ""

    def kill(self) -> None:
        """Kill every process of the host."""
        while found := self._processes():
            for each in found:
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            sleep(0.05)

    def _processes(self) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        running = (int(each) for each in listed.stdout.split())
        return [each for each in running if _is_running(each)]

    def pull(self) -> None:
        """Pull the cable."""
        _ip("-n", self._switch, "link", "set", self._cable, "down")

    def plug(self) -> None:
        _ip("-n", self._switch, "link", "set", self._cable, "up")

    def limit(self, mbit_per_s: float) -> None:
        """Limit what the host sends and receives."""
        for name, device in ((self.name, "wire"), (self._switch, self._cable)):
            rate = ("rate", f"{mbit_per_s}mbit", "burst", "64k", "latency", "200ms")
            command = ["tc", "-n", name, "qdisc", "replace", "dev", device, "root", "tbf", *rate]
            subprocess.run(command, check=True)


def _is_running(process_id: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def hosts_on_a_switch(stack: ExitStack, count: int, directory: Path) -> list[Host]:
    """Return ``count`` hosts; they and their processes are gone when the stack is closed."""
    switch = f"dist-net-{os.getpid()}"
    _ip("netns", "add", switch)
    stack.callback(_ip, "netns", "delete", switch)
    _ip("-n", switch, "link", "add", "switch", "type", "bridge")
    _ip("-n", switch, "link", "set", "switch", "up")
    hosts = []
    for number in range(1, count + 1):
        host = Host(switch, number, directory)
        stack.callback(_ip, "netns", "delete", host.name)
        stack.callback(host.kill)
        hosts.append(host)
    return hosts
