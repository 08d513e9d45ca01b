"""What ``dist-net train FOLDER`` prints at its end."""

import re

from dist_net.cli.train_images import _figures, _other_objects
from naming import naming


def test_right_answers_are_a_count_and_a_share_of_all() -> None:
    measured = {
        "right": 143,
        "images": 151,
        "accuracy": 143 / 151,
        "accuracy_interval": (0.869, 0.98),
        "answered_right": 118,
        "answered": 120,
        "data": "151 images in test/",
    }
    assert re.match(naming("143 of 151", "94.7%", "86.9%", "98.0%", 118, 120), _figures(measured))


def test_how_often_other_objects_are_noticed_is_said() -> None:
    found = _other_objects([{"unknown": share} for share in (0.35, 0.1, 0.2)])
    assert re.match(naming("10%", "35%"), found)
    assert _other_objects([{"unknown": 1.0}]).count("100%") == 1
