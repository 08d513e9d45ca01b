"""Tokens: what they carry through a paste, and what is said of those that cannot be used."""

import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dist_net.errors import TokenError
from dist_net.wire.token import KINDS, POOL, TRAINING, JoinToken, is_token
from naming import naming

KEY, SECRET = bytes(range(32)), bytes(range(100, 132))
TOKEN = JoinToken(TRAINING, "00ad5eed", 1_795_000_000, ("tcp://192.0.2.1:5555",), KEY, SECRET)

addresses = st.builds(
    "tcp://{}:{}".format,
    st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map("[{}]".format)
    | st.from_regex(r"[a-z][a-z0-9-]{1,30}\.example", fullmatch=True),
    st.integers(1, 65535),
)


@settings(deadline=None)
@given(
    st.sampled_from(KINDS),
    st.binary(min_size=4, max_size=4),
    st.integers(0, 2**32 - 1),
    st.lists(addresses, min_size=1, max_size=16).map(tuple),
    st.binary(min_size=64, max_size=64) | st.just(b""),
)
def test_a_token_says_after_a_paste_what_it_said_before(kind, identity, expires_s, where, keys):
    token = JoinToken(kind, identity.hex(), expires_s, where, keys[:32], keys[32:])
    assert JoinToken.parse(token.text) == token


def test_a_token_is_one_short_word_that_no_shell_changes():
    assert set(TOKEN.text) <= {*string.ascii_letters, *string.digits}
    assert len(TOKEN.text) < 130
    assert is_token(TOKEN.text)
    assert is_token(JoinToken(TRAINING, "00ad5eed", 1, ("tcp://127.0.0.1:5555",)).text)
    assert not is_token("dn1.cfg")


def test_a_token_keeps_its_secret_out_of_logs():
    assert repr(SECRET) not in repr(TOKEN)
    with pytest.raises(TokenError) as refused:
        JoinToken.parse(TOKEN.text[:-1])
    assert TOKEN.text[10:-10] not in str(refused.value)


@settings(deadline=None)
@given(st.integers(3, len(TOKEN.text) - 1), st.sampled_from(string.ascii_letters + string.digits))
@example(3, "0")  # which adds nothing to the number
def test_a_letter_that_is_lost_changed_or_added_is_noticed(place, letter):
    text = TOKEN.text
    for damaged in (
        text[:place],
        text[:place] + text[place + 1 :],
        text[:place] + letter + text[place + 1 :],
        text[:place] + letter + text[place:],
    ):
        if damaged != text:
            with pytest.raises(TokenError, match=r"damaged|is no token|invalid content|version"):
                JoinToken.parse(damaged)


@settings(deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200).map(bytes.hex).map("dn2{}".format))
def test_whatever_is_pasted_one_line_says_what_was_expected(text):
    with pytest.raises(TokenError) as refused:
        JoinToken.parse(text)
    assert "copy the whole line again" in str(refused.value) or "same release" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it has 0 characters"),
        (f"{TOKEN.text[:40]}\u2026", "contains '\u2026'"),
        (f"{TOKEN.text[:40]} {TOKEN.text[40:]}", "contains ' '"),
        (f"dn1{TOKEN.text[3:]}", "version 1; this release reads version 2"),
        ("tcp://192.0.2.1:5555", "is no token"),
    ],
)
def test_what_is_wrong_with_a_token_is_named(text, says):
    with pytest.raises(TokenError) as refused:
        JoinToken.parse(text)
    assert says in str(refused.value)


def test_a_token_of_a_pool_is_not_for_training():
    pool = JoinToken(POOL, TOKEN.identity, TOKEN.expires_s, TOKEN.addresses, KEY, SECRET)
    pool.require_kind(POOL)
    with pytest.raises(TokenError, match=naming("dist-net inference-worker")):
        pool.require_kind(TRAINING)
