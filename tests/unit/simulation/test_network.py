"""Connections in virtual time: order, links, partitions, and what goes wrong on purpose."""

import numpy as np
import pytest

from dist_net.wire.messages import Pull, Snapshot
from simulation.network import (
    Link,
    NetworkFaults,
    VirtualClientSocket,
    VirtualNetwork,
    VirtualServerSocket,
)
from simulation.schedule import TracedSchedule


def pair(network: VirtualNetwork) -> tuple[VirtualClientSocket, VirtualServerSocket]:
    return network.connect("worker", "server"), network.listen("server")


def numbers_received(server: VirtualServerSocket) -> list[int]:
    received = [server.receive() for _ in range(len(server))]
    return [message.worker_id for _, message in received if isinstance(message, Pull)]


def after_sending(faults: NetworkFaults, count: int = 200) -> list[int]:
    network = VirtualNetwork(TracedSchedule(seed=3), faults)
    client, server = pair(network)
    for number in range(count):
        client.send(Pull(number, 0, 1))
    network.schedule.run(100.0)
    return numbers_received(server)


def test_a_message_takes_the_latency_and_the_time_of_its_bytes_over_the_slower_link() -> None:
    network = VirtualNetwork(TracedSchedule())
    network.set_link("worker", Link(0.05, 1000.0))
    network.set_link("server", Link(0.0, 4000.0))
    client, server = pair(network)
    arrivals: list[float] = []
    client.on_arrival = lambda: arrivals.append(network.schedule.now_s)
    node = client.node or b""
    for _ in range(2):
        server.send(node, Snapshot(0, 0, np.zeros(225, np.float32)))  # 1000 bytes
    network.schedule.run(10.0)
    assert arrivals == pytest.approx([1.05, 2.05])


def test_what_is_sent_while_no_server_listens_arrives_when_one_does_from_a_new_node() -> None:
    network = VirtualNetwork(TracedSchedule())
    client, server = pair(network)
    former = client.node
    server.close()
    assert client.node is None
    client.send(Pull(1, 0, 1))
    server = network.listen("server")
    network.schedule.run(1.0)
    assert numbers_received(server) == [1]
    assert client.node not in (None, former)


def test_each_fault_does_what_it_says() -> None:
    sent = list(range(200))
    assert after_sending(NetworkFaults(delayed=0.3, delay_s=2.0)) == sent
    overtaken = after_sending(NetworkFaults(overtaken=0.3, delay_s=2.0))
    assert overtaken != sent == sorted(overtaken)
    lost = after_sending(NetworkFaults(lost=0.3))
    assert lost == sorted(lost)
    assert 100 < len(lost) < 200
    doubled = after_sending(NetworkFaults(doubled=0.3, delay_s=2.0))
    assert sorted(set(doubled)) == sent
    assert 230 < len(doubled) < 290
    assert len(after_sending(NetworkFaults(vanishing=0.01))) < 200
