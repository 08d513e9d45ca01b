"""No command line of a running process shows a token, however the process was given it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_net.wire.token import TRAINING, JoinToken

Start = Callable[..., Any]

# Nobody answers at this address (RFC 5737).
TOKEN = JoinToken(
    *(TRAINING, "00ad5eed", 2**31, ("tcp://192.0.2.1:5",), bytes(range(32)), bytes(range(32)))
).text


def words_of(process_id: int) -> list[str]:
    return Path(f"/proc/{process_id}/cmdline").read_text().split("\0")


def test_a_command_that_was_given_a_token_hides_it(start: Start, eventually: Any) -> None:
    joining = start("join", TOKEN, "--timeout", "600")

    def is_hidden() -> bool:
        words = words_of(joining.process.pid)
        return "join" in words and TOKEN not in words

    eventually(is_hidden)
    assert words_of(joining.process.pid)[-3:-1] == ["--timeout", "600"]
    joining.process.terminate()
    assert joining.ends() in (130, -15)
