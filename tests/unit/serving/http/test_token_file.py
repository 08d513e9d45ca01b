"""Tokens and roles, and what happens when their file changes."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_net.errors import KeyFileError
from dist_net.serving.gateway.client_ledger import Quota
from dist_net.serving.http.settings import Credential, TokenFile
from naming import naming

FIRST, SECOND = "first-token-0123", "second-token-456"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "tokens").write_text(FIRST)
    return tmp_path / "tokens"


@pytest.fixture
def pass_s(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function by which time goes on."""
    now_s = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)

    def pass_s(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    return pass_s


def role_of(tokens: TokenFile, token: str) -> str | None:
    found = tokens.credential(f"Bearer {token}".encode())
    return None if found is None else found.role


def test_each_line_is_a_token_with_a_role(path: Path) -> None:
    path.write_text(f"{FIRST}\nclient {SECOND}\r\n\n operator\t third.token-0123== \n")
    tokens = TokenFile(path)
    assert role_of(tokens, FIRST) == "operator"
    assert role_of(tokens, SECOND) == "client"
    assert role_of(tokens, "third.token-0123==") == "operator"
    assert role_of(tokens, "") is role_of(tokens, "client " + SECOND) is None
    assert tokens.credential(b"Bearer \xff\xfe") is None


@pytest.mark.usefixtures("pass_s")
def test_tokens_come_and_go_without_a_restart(path: Path, pass_s: Callable[[float], None]) -> None:
    tokens = TokenFile(path)
    path.write_text(f"client {SECOND}\n")
    assert role_of(tokens, FIRST) == "operator"  # the file is looked at once a second at most
    pass_s(1.1)
    assert role_of(tokens, FIRST) is None
    assert role_of(tokens, SECOND) == "client"
    other = path.with_name("other")
    other.write_text(SECOND)  # as large, and perhaps as old
    other.replace(path)
    pass_s(1.1)
    assert role_of(tokens, SECOND) == "operator"


@pytest.mark.parametrize(
    "content",
    ["", "short\n", f"{SECOND}\nshort\n", f"# the old one:\n{SECOND}\n", "\n" * 70_000, None],
)
def test_only_usable_lines_of_the_file_are_valid(
    path: Path,
    pass_s: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
    content: str | None,
) -> None:
    tokens = TokenFile(path)
    path.unlink() if content is None else path.write_text(content)
    for _ in range(5):
        pass_s(1.1)
        assert role_of(tokens, FIRST) is None
        assert role_of(tokens, SECOND) == ("operator" if SECOND in (content or "") else None)
    assert [str(path) in each.getMessage() for each in caplog.records] == [True]
    path.write_text(FIRST)
    pass_s(1.1)
    assert role_of(tokens, FIRST) == "operator"


def test_without_a_free_descriptor_nothing_changes(
    path: Path, pass_s: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    tokens = TokenFile(path)
    monkeypatch.setattr(Path, "open", no_descriptor)
    pass_s(1.1)
    assert role_of(tokens, FIRST) == "operator"


def test_a_pipe_is_read_once(pass_s: Callable[[float], None]) -> None:
    """As that of a shell's `<(...)`; reading it again would find nothing."""
    reader, writer = os.pipe()
    os.write(writer, FIRST.encode())
    os.close(writer)
    tokens = TokenFile(Path(f"/dev/fd/{reader}"))
    pass_s(1.1)
    assert role_of(tokens, FIRST) == "operator"
    os.close(reader)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" " * 20,
        b"short",
        b"client short",
        b"operator 0123456789abcde",
        "not of ASCII but l\u00f6ng".encode(),
        b"not text but long \xff\xfe",
        b"with a bell, but long \x07",
        b"0123456789abcdef\n" * 10_000,
    ],
)
def test_tokens_that_no_header_carries_or_anybody_guesses_are_refused(
    path: Path, content: bytes
) -> None:
    path.write_bytes(content)
    with pytest.raises(KeyFileError) as raised:
        TokenFile(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "line",
    [
        "# tokens of the operators",
        "#0123456789abcdefghij",
        f"clinet {FIRST}",
        f"Client {FIRST}",
        f"client:{FIRST}",
        f"client={FIRST}",
        f"client, {FIRST}",
        f"client {FIRST} # of the shop",
        f"{FIRST} client",
        "three words with-many-letters",
    ],
)
def test_an_unknown_line_is_named_by_its_number_and_gives_no_rights(
    path: Path, pass_s: Callable[[float], None], caplog: pytest.LogCaptureFixture, line: str
) -> None:
    tokens = TokenFile(path)
    path.write_text(f"\nclient {SECOND}\n\n{line}\n")
    with pytest.raises(KeyFileError, match=naming(4, path)) as raised:
        TokenFile(path)
    pass_s(1.1)
    assert role_of(tokens, line) is role_of(tokens, FIRST) is None
    assert role_of(tokens, line.split()[-1]) is None
    assert role_of(tokens, SECOND) == "client"
    for text in (str(raised.value), caplog.text):
        assert line not in text
        assert FIRST not in text


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(KeyFileError) as raised:
            TokenFile(path)
        assert str(path) in str(raised.value)


def test_a_line_may_name_a_token_and_limit_it(path: Path) -> None:
    path.write_text(f"client {FIRST} name=lab rate=50 inflight=16\n{SECOND} rate=2\n")
    tokens = TokenFile(path)
    lab = tokens.credential(f"Bearer {FIRST}".encode())
    assert lab == Credential("client", "lab", Quota(50, 16))
    other = tokens.credential(f"Bearer {SECOND}".encode())
    assert other is not None
    assert (other.role, other.quota) == ("operator", Quota(rate=2))
    assert SECOND not in other.name  # it is logged


@pytest.mark.parametrize("limit", ["rate=0", "rate=x", "inflight=-1", "inflight=2 rate=1", "x=1"])
def test_limits_that_are_none_are_named_with_their_line(path: Path, limit: str) -> None:
    path.write_text(f"client {FIRST} {limit}\n")
    with pytest.raises(KeyFileError, match=naming("line 1", "rate=N")):
        TokenFile(path)
