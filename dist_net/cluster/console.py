"""The terminal that people read: what is printed on it appears as it is."""

from rich.console import Console


def plain_console(*, stderr: bool = True) -> Console:
    """A console on stderr, or on stdout, that reads nothing into the text that it is given.

    File names, addresses and messages may hold ``[brackets]`` and ``:words:``, which Rich would
    otherwise take for markup and emoji. Long lines are not wrapped, so that commands can be copied.
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)
