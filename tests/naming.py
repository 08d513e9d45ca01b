"""Patterns for the values that a message must name, whatever its wording."""

import re


def naming(*values: object) -> str:
    """Return a pattern of messages that name each value, as a whole word or number, in any order.

    For ``pytest.raises(..., match=naming(17, "float32"))``.
    """
    return r"(?s)\A" + "".join(f"(?=.*{_whole(str(value))})" for value in values)


def _whole(value: str) -> str:
    before = r"(?<![\w.,-])" if value[0].isdigit() else r"(?<!\w)" if value[0].isalpha() else ""
    after = r"(?!\w|[.,]\d)" if value[-1].isdigit() else r"(?!\w)" if value[-1].isalpha() else ""
    return before + re.escape(value) + after
