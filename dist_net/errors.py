"""Every exception of the project, one leaf per cause; imports nothing.

A message says what happened, with the value, what was expected, and what to do. ``exit_code`` is
what a command ends with: 2 for bad usage or bad input, 1 when the work itself failed.
"""


class DistNetError(Exception):
    """Root of every error that this project raises on purpose."""

    exit_code = 1


class BadInputError(DistNetError):
    """What the caller gave cannot be used; nothing was started."""

    exit_code = 2


# Expressions and plans


class ShapeError(BadInputError):
    """The shapes of an operation's inputs do not fit together."""


class DTypeError(BadInputError):
    """The dtypes of an operation's inputs do not fit together."""


class GraphError(BadInputError):
    """An expression graph was asked for something that it does not contain."""


# The wire


class ProtocolError(DistNetError):
    """A peer sent a message that is not of this protocol."""
