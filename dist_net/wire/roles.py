"""What the holder of a key may do: each role has its own messages. Pure data.

A *worker* trains, or answers for a pool. A *client* asks a pool, and watches a run. An *operator*
is a client who may also end a run, and reload and unload models.
"""

from dist_net.wire.messages import (
    Heartbeat,
    Join,
    Leave,
    Message,
    Pull,
    Push,
    Shutdown,
    SnapshotRequest,
    StatusRequest,
)
from dist_net.wire.serving_messages import (
    Ask,
    Cancel,
    Describe,
    Done,
    Enlist,
    FetchArrays,
    Greet,
    Loaded,
    Reload,
    Unload,
)

WORKER, CLIENT, OPERATOR = "worker", "client", "operator"

_TRAINS: set[type[Message]] = {Join, Pull, Push, Heartbeat, Leave}
_ANSWERS: set[type[Message]] = {Enlist, Loaded, FetchArrays, Done}
_ASKS: set[type[Message]] = {Ask, Cancel, Describe, Greet, SnapshotRequest}
_RULES: set[type[Message]] = {Shutdown, Reload, Unload}

MAY_SEND = {
    WORKER: {StatusRequest, *_TRAINS, *_ANSWERS},
    CLIENT: {StatusRequest, *_ASKS},
    OPERATOR: {StatusRequest, *_ASKS, *_RULES},
}
"""What a server takes of a peer with a key, by the key's role."""


def refusal_of(roles: frozenset[str], kind: type[Message]) -> str | None:
    """Why a peer whose key has these roles may not send such a message; None: it may."""
    if any(kind in MAY_SEND[role] for role in roles):
        return None
    needed = next((role for role, kinds in MAY_SEND.items() if kind in kinds), None)
    own = " and ".join(sorted(roles)) or "nobody"
    if needed is None:
        remedy = "it is taken of processes of this host alone"
    else:
        remedy = (
            f"use a key of a {needed}, which 'dist-net keys create DIR --{needed} NAME' makes on "
            f"the server's host"
        )
    return f"this is a key of a {own}, who may not send {kind.__name__}: {remedy}"
