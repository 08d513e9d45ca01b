"""The report of a run: its numbers by hand, and a page that stands alone whatever names hold."""

from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from dist_net.images.labels import Calibration
from dist_net.photos.image_report import draw_classes, draw_report
from dist_net.photos.photo_statistics import JudgedImages
from dist_net.photos.report_content import class_table, report_content
from dist_net.photos.report_page import VARIANT, report_page
from dist_net.photos.unknown_images import LeftOutClass
from dist_net.training.run.plots import new_figure

NAMES = ("cat", "<b>dog</b>", "fish & chips")
RUN = {
    "name": "pets",
    "description": "3 classes",
    "images": {"train": 10, "validation": 5, "test": 0},
    "fine_tuning": "",
    "advice": "",
    "skipped": 1,
}
CURVES = [
    {"kind": kind, "epoch": epoch, "loss": 1 / (1 + epoch), "accuracy": epoch / 2}
    for epoch in (0, 1, 2)
    for kind in ("train", "test")
]


def judged(times: int = 1, folds: int | None = 5, in_group: int = 1) -> JudgedImages:
    """Five images, of which the second is a confident mistake and the fourth an unsure one."""
    probabilities = np.array(
        [
            [0.8, 0.1, 0.1],
            [0.05, 0.9, 0.05],
            [0.1, 0.8, 0.1],
            [0.1, 0.3, 0.6],
            [0.1, 0.1, 0.8],
        ]
    )
    files = [f"{index}.jpg" for index in range(5)] * times
    logits = np.log(np.tile(probabilities, (times, 1))).astype("f4")
    targets = np.tile([0, 0, 1, 1, 2], times)
    return JudgedImages(files, targets, logits, np.arange(5 * times) // in_group, folds)


def unsure_of_mistakes(times: int = 1, in_group: int = 1) -> JudgedImages:
    """The same images, whose confident mistake has the lowest probability."""
    found = judged(times, in_group=in_group)
    found.logits[1::5] = np.log(np.array([0.25, 0.5, 0.25], "f4"))
    return found


def content(**changes):
    given = {
        "judged": judged(),
        "tested": None,
        "calibration": Calibration(1.0, 0.7, 0.75),
        "left_out": [LeftOutClass("cat", 10, 40, 0.6, 0.1)],
    } | changes
    curves = given.pop("curves", CURVES)
    return RUN | report_content(NAMES, **given) | {"curves": curves}


def test_accuracy_matrix_and_classes_are_counted():
    found = content()
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["confusion"] == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found["classes"][1] == {
        "name": "<b>dog</b>",
        "images": 2,
        "precision": 0.5,
        "recall": 0.5,
        "warning": "",
    }


@pytest.mark.parametrize(
    ("right", "images", "warnings"),
    [
        ((200, 2, 190), (200, 6, 200), ["", "few images", ""]),
        ((198, 28, 199), (200, 60, 200), ["", "often wrong", ""]),
        ((4, 3, 4), (5, 5, 5), ["", "", ""]),
        ((5, 0, 5), (5, 0, 5), ["", "few images", ""]),
    ],
)
def test_a_class_that_the_figures_of_all_images_hide_has_a_warning(
    right: tuple[int, ...], images: tuple[int, ...], warnings: list[str]
) -> None:
    confusion = np.diag(right)
    confusion[:, 0] += np.subtract(images, right) * (np.arange(3) > 0)
    confusion[0, 1] += images[0] - right[0]
    assert [each["warning"] for each in class_table(confusion, NAMES)] == warnings


def test_the_curve_leads_from_the_most_certain_answer_to_all() -> None:
    found = content()["calibration"]
    curve, answered = found["curve"], found["answered"]
    assert [each["answered"] for each in curve] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert curve[-1]["right"] == pytest.approx(content()["accuracy"])
    (here,) = (each for each in curve if each["answered"] == pytest.approx(answered))
    assert here["right"] == pytest.approx(found["right_of_answered"])


def test_mistakes_come_with_the_most_confident_first():
    assert [(each["image"], each["answer"]) for each in content()["mistakes"]] == [
        ("1.jpg", "<b>dog</b>"),
        ("3.jpg", "fish & chips"),
    ]


def test_only_a_label_against_which_much_speaks_is_doubtful():
    assert [each["image"] for each in content()["doubtful"]] == ["1.jpg"]


def test_what_is_answered_and_how_much_of_it_is_right_follows_from_the_threshold():
    calibration = content()["calibration"]
    assert calibration["answered"] == pytest.approx(4 / 5)
    assert calibration["right_of_answered"] == pytest.approx(3 / 4)


def test_nothing_is_right_of_no_answer():
    calibration = content(calibration=Calibration(1.0, 1.0, 0.95))["calibration"]
    assert calibration["answered"] == 0
    assert calibration["right_of_answered"] is None


def test_each_figure_states_its_images_and_its_interval():
    (figures,) = content()["measured"]
    assert (figures["right"], figures["images"]) == (3, 5)
    assert (figures["answered_right"], figures["answered"]) == (3, 4)
    low, high = figures["accuracy_interval"]
    assert low < 3 / 5 < high
    assert "5 images" in figures["data"]
    assert "5 heads" in figures["data"]


def test_images_of_test_are_reported_beside_those_that_calibrated():
    found = content(tested=judged(2, None))
    assert [each["images"] for each in found["measured"]] == [5, 10]
    assert found["judged_on"] == found["measured"][1]["data"]
    assert found["calibration"]["measured_on"] == found["measured"][0]["data"]
    assert sum(map(sum, found["confusion"])) == 10


def test_a_calibration_error_needs_300_images():
    assert content(judged=judged(59))["calibration"]["error_after"] is None
    assert content(judged=judged(60))["calibration"]["error_after"] > 0
    assert "calibration error" not in report_page(content(), {})
    assert "calibration error" in report_page(content(judged=judged(60)), {})


def test_few_images_are_counted_and_many_are_a_share():
    few, many = (Seen(report_page(content(judged=judged(times)), {})).text for times in (1, 6))
    assert "3 of 5 (" in few
    assert "60.0% (" not in few
    assert "60.0% (" in many
    assert "6 of 10" in few  # of the class that was left out
    assert "10.0%" in few  # of 40 others


def test_a_precision_that_the_images_cannot_prove_is_not_claimed():
    for precision, times, is_proven in ((0.75, 1, False), (0.4, 20, True)):
        calibration = unsure_of_mistakes(times).calibrate(precision)
        found = content(calibration=calibration)["calibration"]
        assert found["is_proven"] == is_proven


def test_each_choice_of_a_precision_is_proven_and_states_what_it_answers() -> None:
    found = unsure_of_mistakes(20).calibrate(0.99)
    page = content(judged=unsure_of_mistakes(20), calibration=found)
    choices = page["calibration"]["choices"]
    assert [each["precision"] for each in choices] == [0.5, 0.8]
    for each in choices:
        threshold = found.promising(each["precision"]).threshold
        assert each["threshold"] == threshold
        confidence = unsure_of_mistakes(20).probabilities(found).max(1)
        assert each["answered"] == (confidence >= threshold).mean()
    assert f"{choices[-1]['answered']:.1%}" in Seen(report_page(page, {})).text
    few = content(calibration=unsure_of_mistakes().calibrate(0.2))
    assert few["calibration"]["choices"] == []


def test_terms_are_explained_where_they_are_used() -> None:
    text = Seen(report_page(content(), {})).text
    assert all(f"{each}: " in text for each in ("Head", "Out of fold", "Group"))
    assert "Head: " not in Seen(report_page(content(judged=judged(folds=None)), {})).text


def test_similar_images_are_counted_once() -> None:
    apart, alike = (content(judged=judged(20, in_group=each)) for each in (1, 10))
    assert [each["measured"][0]["groups"] for each in (apart, alike)] == [100, 10]
    widths = [np.ptp(each["measured"][0]["accuracy_interval"]) for each in (apart, alike)]
    assert widths[1] > 2 * widths[0]
    assert unsure_of_mistakes(20).calibrate(0.6).is_proven
    assert not unsure_of_mistakes(20, in_group=10).calibrate(0.6).is_proven
    assert not judged(20).calibrate(0.2).is_proven  # the most probable answers are wrong
    assert "100 images in 10 groups" in Seen(report_page(alike, {})).text


class Seen(HTMLParser):
    """The tags, addresses and texts of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def png(color=(255, 0, 0)) -> bytes:
    file = BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    return file.getvalue()


def test_the_page_stands_alone_and_shows_names_as_they_are():
    seen = Seen(report_page(content(), {"1.jpg": png()}))
    assert "script" not in seen.tags
    assert "link" not in seen.tags
    assert all(source.startswith("data:image/png;base64,") for source in seen.sources)
    assert len(seen.sources) == 2  # as a mistake, and as doubtful
    assert "<b>dog</b>" in seen.text
    assert "fish & chips" in seen.text


def test_the_page_shows_what_more_images_would_bring() -> None:
    points = [{"images": each, "right": 0.5, "interval": (0.4, 0.6)} for each in (5, 10, 20, 40)]
    classes = [{"name": name, "points": points} for name in NAMES]
    learning = {"whole": {"points": points}, "classes": classes, "advice": "10 of <b>dog</b>"}
    page = report_page(content() | {"learning": learning}, {})
    seen = Seen(page)
    assert "10 of <b>dog</b>." in seen.text
    assert seen.text.count("50% (40% to 60%)") == 2 * len(NAMES)
    assert 'class="expected"' in page


def test_what_there_is_not_is_not_spoken_of():
    full = Seen(report_page(content(), {})).text
    bare = Seen(report_page(content(judged=judged(folds=None), left_out=[], curves=[]), {})).text
    for title in ("Doubtful labels", "unknown class", "Learning"):
        assert title in full
        assert title not in bare


def test_the_variants_of_training_images_are_shown_if_there_are_some():
    variants = {f"{VARIANT}{number}": png() for number in range(12)}
    shown = Seen(report_page(content(), variants))
    assert len(shown.sources) == 12
    assert "--no-colour-changes" in shown.text
    assert "--no-colour-changes" not in Seen(report_page(content(), {})).text


def test_the_image_can_be_read(tmp_path):
    pytest.importorskip("matplotlib")
    draw_report(content(), {"1.jpg": png()}, tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as image:
        assert image.width > 1000


def test_the_legend_of_the_classes_covers_no_bar():
    pytest.importorskip("matplotlib")
    figure = new_figure(8, 8)
    axes = figure.subplots()
    draw_classes(axes, content())
    figure.draw_without_rendering()
    legend = axes.get_legend().get_window_extent()
    assert not legend.overlaps(axes.get_window_extent())
