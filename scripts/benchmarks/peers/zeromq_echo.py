"""A bare echo over ZeroMQ and loopback TCP: the least that a push and a pull cost."""

import multiprocessing
from statistics import median
from time import perf_counter

import zmq

from benchmarks.peers import task

ROUND_TRIPS = 4000
WARM_UP = 400


def echo(port: "multiprocessing.Queue[int]") -> None:
    """Sends back what comes, until it is empty."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        port.put(socket.bind_to_random_port("tcp://127.0.0.1"))
        while True:
            node, payload = socket.recv_multipart(copy=False)
            if not payload.bytes:
                return
            socket.send_multipart([node, payload], copy=False)


def measure(size_bytes: int) -> task.Case:
    """Milliseconds of a round trip between two processes, the median."""
    spawn = multiprocessing.get_context("spawn")
    port = spawn.Queue()
    server = spawn.Process(target=echo, args=(port,))
    server.start()
    times_s = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(f"tcp://127.0.0.1:{port.get()}")
        payload = bytes(size_bytes)
        for _ in range(ROUND_TRIPS):
            start = perf_counter()
            socket.send(payload, copy=False)
            socket.recv(copy=False)
            times_s.append(perf_counter() - start)
        socket.send(b"")
    server.join()
    return {"bytes": size_bytes, "median_ms": round(1e3 * median(times_s[WARM_UP:]), 4)}


if __name__ == "__main__":
    task.report("pyzmq", measure)
