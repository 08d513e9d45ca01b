"""What ``dist-net train FOLDER`` prints at its end."""

import re

from dist_net.cli.run_summary import _answers, _bad_classes, _figures, _other_objects
from naming import naming

MEASURED = {
    "right": 143,
    "images": 151,
    "accuracy": 143 / 151,
    "accuracy_interval": (0.869, 0.98),
    "answered_right": 118,
    "answered": 120,
    "data": "151 images in test/",
}


def test_right_answers_are_a_count_and_a_share_of_all() -> None:
    assert re.match(naming("143 of 151", "94.7%", "86.9%", "98.0%"), _figures(MEASURED))


def test_what_the_model_answers_is_a_count_in_words_and_names_doubtful_labels() -> None:
    choices = [{"precision": each, "answered": 1.6 - each} for each in (0.7, 0.8, 0.95)]
    content = {
        "measured": [MEASURED],
        "doubtful": [{}] * 8,
        "calibration": {"choices": choices},
    }
    text = _answers(content)
    assert re.match(
        naming(120, 151, 118, "8 doubtful labels", "RUN,precision=0.8 (answers 80%) or 0.7"), text
    )
    assert "0.95" not in text
    certain = MEASURED | {"answered": 151, "answered_right": 151}
    assert "unknown" not in _answers(content | {"measured": [certain]})


def test_classes_that_the_figures_hide_are_named() -> None:
    classes = [
        {"name": "cat", "images": 200, "recall": 1.0, "warning": ""},
        {"name": "dog", "images": 6, "recall": 1 / 3, "warning": "few images"},
        {"name": "ox", "images": 0, "recall": None, "warning": "few images"},
    ]
    dog, ox = _bad_classes(classes)
    assert re.match(naming("'dog'", "few images", 2, "6 images"), dog)
    assert re.match(naming("'ox'", "0 images"), ox)


def test_how_often_other_objects_are_noticed_is_said() -> None:
    found = _other_objects([{"unknown": share} for share in (0.35, 0.1, 0.2)])
    assert re.match(naming("10%", "35%"), found)
    assert _other_objects([{"unknown": 1.0}]).count("100%") == 1
