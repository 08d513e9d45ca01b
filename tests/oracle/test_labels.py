"""The names of ImageNet's classes against the list that the reference program reads."""

from pathlib import Path

import pytest

from dist_net.nets.darknet.published import imagenet_labels

LIST = Path("/usr/share/darknet/data/imagenet.shortnames.list")


@pytest.mark.skipif(not LIST.is_file(), reason=f"needs Debian's package darknet: no {LIST}")
def test_the_labels_are_the_first_of_darknets_list() -> None:
    assert imagenet_labels() == tuple(LIST.read_text().splitlines()[:1000])
