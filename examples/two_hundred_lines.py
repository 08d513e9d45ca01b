"""Distributed training in one file: autodiff, a net, a parameter server and three workers.

    python examples/two_hundred_lines.py

It needs NumPy and pyzmq, but not dist_net. Halfway through the run, the server kills a worker with
SIGKILL. At the end, it counts how often each sample was applied: exactly once per epoch.
"""

import json
import os
import subprocess
import sys
import time
from collections import deque

# Limit BLAS to one thread per process, before NumPy is imported: four processes share the cores.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import zmq

EPOCHS, BATCH_SIZE, LEARNING_RATE = 60, 20, 0.3
LEASE_S = 1.0  # samples that are not returned within this time go to another worker
SILENCE_S = 10.0  # a worker exits if the server is silent for this long


# 1. Autodiff. A node stores its value, its inputs, and one VJP (vector-Jacobian product) per input.
#    Let g be the gradient of the loss with respect to the node. The VJP of an input maps g to the
#    gradient with respect to that input.
class Node:
    def __init__(self, value, inputs=(), vjps=()):
        self.value, self.inputs, self.vjps = value, inputs, vjps


def matmul(x, w):
    return Node(x.value @ w.value, (x, w), (lambda g: g @ w.value.T, lambda g: x.value.T @ g))


def add_bias(x, b):
    return Node(x.value + b.value, (x, b), (lambda g: g, lambda g: g.sum(axis=0)))


def tanh(x):
    y = np.tanh(x.value)
    return Node(y, (x,), (lambda g: g * (1 - y * y),))


def mean_cross_entropy(logits, labels):
    log_p = logits.value - np.logaddexp.reduce(logits.value, axis=1, keepdims=True)
    targets = np.eye(log_p.shape[1])[labels]
    loss = -(targets * log_p).sum() / len(labels)
    return Node(loss, (logits,), (lambda g: g * (np.exp(log_p) - targets) / len(labels),))


def gradients(loss, variables):
    """Walk once from the loss back to the variables, and add up the contributions at each node."""
    order, visited = [], set()

    def visit(node):
        if node not in visited:
            visited.add(node)
            for each in node.inputs:
                visit(each)
            order.append(node)  # inputs before the nodes that use them

    visit(loss)
    total = {loss: 1.0}
    for node in reversed(order):
        for each, vjp in zip(node.inputs, node.vjps, strict=True):
            total[each] = total.get(each, 0.0) + vjp(total[node])
    return [total[each] for each in variables]


# 2. The net: three dense layers. All parameters are parts of one flat vector, so the weights are a
#    single frame of a message, and the gradient too.
SHAPES = [(2, 32), (32,), (32, 32), (32,), (32, 3), (3,)]
SIZES = [int(np.prod(shape)) for shape in SHAPES]


def unpack(weights):
    parts = zip(np.split(weights, np.cumsum(SIZES)[:-1]), SHAPES, strict=True)
    return [Node(part.reshape(shape)) for part, shape in parts]


def predict(points, parameters):
    kernel_1, bias_1, kernel_2, bias_2, kernel_3, bias_3 = parameters
    hidden = tanh(add_bias(matmul(Node(points), kernel_1), bias_1))
    hidden = tanh(add_bias(matmul(hidden, kernel_2), bias_2))
    return add_bias(matmul(hidden, kernel_3), bias_3)


# 3. The data: points on three spirals. Every process draws the same points from the same seed, and
#    the same order of the samples in an epoch, so a message names samples by their positions.
def spirals(seed, per_arm=400):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_arm)
    radius = np.tile(np.linspace(0.05, 1, per_arm), 3)
    angle = 5 * radius + labels * 2 * np.pi / 3 + generator.normal(0, 0.12, 3 * per_arm)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]), labels


def minibatch(epoch, start, samples):
    return np.random.default_rng(epoch).permutation(samples)[start : start + BATCH_SIZE]


# 4. A worker receives a lease with the current weights, computes a gradient, and pushes it. The
#    reply is the next lease. A message is a JSON header and one array as raw bytes: no pickle.
def work(address, name):
    points, labels = spirals(seed=0)
    socket = zmq.Context().socket(zmq.REQ)
    socket.identity, socket.linger = name.encode(), 0
    socket.connect(address)
    header, gradient = {}, np.empty(0)  # the first message only requests work
    while True:
        socket.send_multipart([json.dumps(header).encode(), gradient.tobytes()])
        if not socket.poll(1000 * SILENCE_S):
            sys.exit(f"{name}: no reply from the server within {SILENCE_S:.0f} s")
        received, weights = socket.recv_multipart()
        header = json.loads(received)  # the push repeats it
        chosen = minibatch(header["epoch"], header["start"], len(labels))
        parameters = unpack(np.frombuffer(weights))
        loss = mean_cross_entropy(predict(points[chosen], parameters), labels[chosen])
        gradient = np.concatenate([each.ravel() for each in gradients(loss, parameters)])


# 5. Leases. A range of samples is waiting, leased to one worker, or applied. An expired lease puts
#    its range back, to be leased under a new number: a push with the old number is recognized.
class Leases:
    def __init__(self, samples):
        starts = range(0, samples, BATCH_SIZE)
        self.waiting = deque((epoch, start) for epoch in range(EPOCHS) for start in starts)
        self.active, self.granted = {}, 0

    def grant(self, now):
        self.granted += 1
        epoch, start = self.waiting.popleft()
        self.active[self.granted] = epoch, start, now + LEASE_S
        return {"lease": self.granted, "epoch": epoch, "start": start}

    def expire(self, now):
        for number in [n for n, (*_, deadline) in self.active.items() if deadline < now]:
            self.waiting.appendleft(self.active.pop(number)[:2])


# 6. The parameter server applies each gradient on arrival, so fast workers never wait for slow ones
#    (asynchronous SGD). The staleness of a gradient is the number of updates between the weights
#    that it was computed from and the weights that it is applied to.
def serve(socket, processes, weights, samples):
    leases, idle, victim = Leases(samples), deque(), "worker 1"
    version, staleness, applied = 0, 0, np.zeros((EPOCHS, samples), int)
    while leases.waiting or leases.active:
        if socket.poll(100):
            name, _, received, gradient = socket.recv_multipart()
            header = json.loads(received)
            if lease := leases.active.pop(header.get("lease"), None):  # else it has expired
                epoch, start, _ = lease
                weights -= LEARNING_RATE * np.frombuffer(gradient)
                applied[epoch, minibatch(epoch, start, samples)] += 1
                staleness += version - header["version"]
                version += 1
            idle.append(name)
        elif all(process.poll() is not None for process in processes.values()):
            sys.exit("all workers have died, so the run cannot be completed")
        leases.expire(time.monotonic())
        while idle and leases.waiting:
            name, header = idle.popleft(), leases.grant(time.monotonic()) | {"version": version}
            if name.decode() == victim and header["epoch"] >= EPOCHS // 2:
                processes[victim].kill()  # SIGKILL; its lease will expire
                print(f"update {version:,}: killed {victim}, which holds lease {header['lease']:,}")
                victim = None
            socket.send_multipart([name, b"", json.dumps(header).encode(), weights.tobytes()])
    print(f"{version:,} updates; mean staleness {staleness / version:.1f}")
    print(f"{leases.granted:,} leases, of which {leases.granted - version} expired")
    print(f"{(applied == 1).sum():,} of {applied.size:,} samples were applied exactly once")


# 7. The run. Afterwards, draw the class that the net predicts for each point of the disk.
def main():
    weights = np.random.default_rng(0).normal(0, 0.5, sum(SIZES))
    socket = zmq.Context().socket(zmq.ROUTER)
    address = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
    names = "worker 1", "worker 2", "worker 3"
    processes = {n: subprocess.Popen([sys.executable, __file__, address, n]) for n in names}
    try:
        serve(socket, processes, weights, samples=len(spirals(seed=0)[1]))
    finally:
        for process in processes.values():
            process.kill()  # a worker holds nothing that must be saved
            process.wait()
    points, labels = spirals(seed=1)
    correct = predict(points, unpack(weights)).value.argmax(axis=1) == labels
    print(f"accuracy on new points: {correct.mean():.1%}")
    y, x = np.mgrid[1:-1:21j, -1:1:51j]
    classes = predict(np.column_stack([x.ravel(), y.ravel()]), unpack(weights)).value.argmax(axis=1)
    symbols = np.where(np.hypot(x, y) > 1, " ", np.array([*".o#"])[classes].reshape(x.shape))
    print("\n".join("".join(row) for row in symbols))


if __name__ == "__main__":
    work(*sys.argv[1:]) if len(sys.argv) == 3 else main()
