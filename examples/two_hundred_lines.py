"""Distributed training in one file: autodiff, a net, a parameter server and three workers.

Run it with NumPy and pyzmq, without dist_net: in rounds, or with ``--async``. Halfway, the server
kills a worker with SIGKILL; each sample is still applied exactly once per epoch, which it counts.
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

EPOCHS, BATCH_SIZE, LOCAL_STEPS, LEARNING_RATE = 60, 20, 4, 0.5
LEASE_S, SILENCE_S = 1.0, 10.0  # until a lease expires; until a worker gives up a silent server


# 1. Autodiff. A node stores its value, its inputs, and one VJP (vector-Jacobian product) per input:
#    it maps the gradient of the loss with respect to the node to that with respect to the input.
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


def minibatches(lease, samples):
    order = np.random.default_rng(lease["epoch"]).permutation(samples)
    return np.split(order[lease["start"] :][: LOCAL_STEPS * BATCH_SIZE], LOCAL_STEPS)


# 4. A worker receives a lease with the weights, takes a step for each minibatch, and pushes the
#    change. The reply is the next lease. A message is a JSON header and raw bytes: no pickle.
def work(address, name):
    points, labels = spirals(seed=0)
    socket = zmq.Context().socket(zmq.REQ)
    socket.identity, socket.linger = name.encode(), 0
    socket.connect(address)
    lease, change = {}, np.empty(0)  # the first message only requests work
    while True:
        socket.send_multipart([json.dumps(lease).encode(), change.tobytes()])
        if not socket.poll(1000 * SILENCE_S):
            sys.exit(f"{name}: no reply from the server within {SILENCE_S:.0f} s")
        received, weights = socket.recv_multipart()
        lease, change = json.loads(received), np.zeros(sum(SIZES))  # the push repeats the lease
        for chosen in minibatches(lease, len(labels)):
            parameters = unpack(np.frombuffer(weights) + change)
            loss = mean_cross_entropy(predict(points[chosen], parameters), labels[chosen])
            gradient = np.concatenate([each.ravel() for each in gradients(loss, parameters)])
            change -= LEARNING_RATE * gradient


# 5. Leases. A range of samples is waiting, leased to one worker, or applied. An expired lease puts
#    its range back, to be leased under a new number: a push with the old number is recognized.
class Leases:
    def __init__(self):
        self.waiting, self.active, self.granted = deque(), {}, 0

    def grant(self, now):
        self.granted += 1
        epoch, start = self.waiting.popleft()
        self.active[self.granted] = epoch, start, now + LEASE_S
        return {"number": self.granted, "epoch": epoch, "start": start}

    def expire(self, now):
        for number in [n for n, (*_, deadline) in self.active.items() if deadline < now]:
            self.waiting.appendleft(self.active.pop(number)[:2])


# 6. The server trains in rounds: the leases of a round begin with the same weights. When all have
#    returned, it adds the mean of their changes, whoever computed them. With is_async, it adds a
#    change on arrival: nobody waits, but the weights have moved meanwhile, by `staleness` updates.
def serve(socket, processes, weights, samples, is_async=False):
    ranges = [(e, s) for e in range(EPOCHS) for s in range(0, samples, LOCAL_STEPS * BATCH_SIZE)]
    round_size = len(ranges) if is_async else len(processes)
    leases, idle, version, staleness = Leases(), deque(), 0, 0
    applied = np.zeros((EPOCHS, samples), int)
    for first in range(0, len(ranges), round_size):
        leases.waiting, changes = deque(ranges[first : first + round_size]), {}
        while leases.waiting or leases.active:
            leases.expire(time.monotonic())
            while idle and leases.waiting:
                name, lease = idle.popleft(), leases.grant(time.monotonic()) | {"version": version}
                if name == b"worker 1" and lease["epoch"] >= EPOCHS // 2:
                    processes["worker 1"].kill()  # SIGKILL; its lease will expire
                    print(f"update {version:,}: killed worker 1, with lease {lease['number']:,}")
                socket.send_multipart([name, b"", json.dumps(lease).encode(), weights.tobytes()])
            if socket.poll(100):
                name, _, received, change = socket.recv_multipart()
                lease = json.loads(received)
                if leases.active.pop(lease.get("number"), None):  # else it has expired
                    changes[lease["epoch"], lease["start"]] = np.frombuffer(change)
                    applied[lease["epoch"], np.concatenate(minibatches(lease, samples))] += 1
                    staleness += version - lease["version"]
                if changes and (is_async or not (leases.waiting or leases.active)):
                    weights += np.mean([changes[each] for each in sorted(changes)], axis=0)
                    version, changes = version + 1, {}
                idle.append(name)
            elif all(process.poll() is not None for process in processes.values()):
                sys.exit("all workers have died, so the run cannot be completed")
    print(f"{version:,} updates; mean staleness {staleness / len(ranges):.1f}")
    print(f"{leases.granted:,} leases, of which {leases.granted - len(ranges)} expired")
    print(f"{(applied == 1).sum():,} of {applied.size:,} samples were applied exactly once")


# 7. The run. Afterwards, draw the class that the net predicts for each point of the disk.
def main():
    weights = np.random.default_rng(0).normal(0, 0.5, sum(SIZES))
    socket = zmq.Context().socket(zmq.ROUTER)
    address = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
    names, is_async = ("worker 1", "worker 2", "worker 3"), "--async" in sys.argv
    processes = {n: subprocess.Popen([sys.executable, __file__, address, n]) for n in names}
    try:
        serve(socket, processes, weights, len(spirals(seed=0)[1]), is_async)
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
