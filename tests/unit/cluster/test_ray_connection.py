"""What is said where there is no Ray, or no cluster of it."""

import sys

import pytest

from dist_net.cluster.ray_connection import connected
from dist_net.errors import MissingExtraError


def test_without_ray_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dist-net\[ray\]'"):
        connected("auto")
