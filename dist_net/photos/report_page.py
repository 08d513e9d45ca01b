"""Render the report as a self-contained HTML file without scripts, in light and dark."""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("report.css")
MAX_CLASSES_COUNTED = 40
"""With more classes the confusion matrix is omitted as unreadable; the class table remains."""

MIN_IMAGES_FOR_SHARE = 30
VARIANT = "/variant/"
"""The prefix of the names of augmented images among the thumbnails; no image's name begins so."""
LEFT_OUT = {"unknown": "called unknown", "known_lost": "others called unknown"}

WIDTH, HEIGHT, LEFT, BOTTOM = 400, 200, 40, 24


def report_page(content: Mapping[str, Any], thumbnails: Mapping[str, bytes]) -> str:
    """Return the HTML page of a report's ``content``; ``thumbnails`` maps names to PNG files."""
    name = escape(content["name"])
    body = [
        f"<h1>{name}</h1>",
        f"<p>{escape(content['description'])}</p>",
        _facts(content),
        _curves(content["curves"]),
        _variants(thumbnails),
        _classes(content),
        _confusion(content["confusion"], [each["name"] for each in content["classes"]]),
        _enough(content.get("learning")),
        _unknown(content["calibration"], content["left_out"]),
        _images(
            "The most confident mistakes",
            "Wrong answers on images that were not trained on.",
            content["mistakes"],
            thumbnails,
        ),
        _images(
            "Doubtful labels",
            "Nets that were not trained on these images assign them to another class. Check that "
            "they are in the right folder.",
            content["doubtful"],
            thumbnails,
        ),
        _skipped(content["skipped"]),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n"
        + "\n".join(part for part in body if part)
        + "\n</html>\n"
    )


def _facts(content: Mapping[str, Any]) -> str:
    """Return the table of the figures measured on each set of images."""
    rows = (
        (
            escape(each["data"]),
            _proven(each["right"], each["images"], each["accuracy_interval"]),
            f"{each['answered']:,} of {each['images']:,}",
            _proven(each["answered_right"], each["answered"], each["right_of_answered_interval"]),
        )
        for each in content["measured"]
    )
    head = ("measured on", "right answers", "answered; others: unknown", "right of those answered")
    used = ""
    if "fold" in content["measured"][0]["data"]:
        counts = content["images"]
        used = f"The head is trained on all {counts['train'] + counts['validation']:,} images. "
    text = (
        "The interval behind each share holds its true value with a confidence of 95 % (Wilson; "
        "out of fold, corrected for heads that share images)."
    )
    terms = " ".join(f"<b>{name.capitalize()}</b>: {of}." for name, of in content["terms"].items())
    of_tuning = content["fine_tuning"] or content["advice"]
    tuning = of_tuning and f"<p>Fine-tuning: {escape(of_tuning)}.</p>"
    return _table("measured", head, rows) + f"<p>{terms}</p><p>{used}{text}</p>{tuning}"


def _proven(right: int, total: int, interval: Sequence[float] | None) -> str:
    """Return a share with its interval; "n of m" for few images, to avoid false precision."""
    if interval is None:
        return "-"
    bounds = f"{interval[0]:.0%} to {interval[1]:.0%}"
    if total < MIN_IMAGES_FOR_SHARE:
        return f"{right:,} of {total:,} ({bounds})"
    return f"{right / total:.1%} ({bounds})"


def _share_of(value: float | None, total: int) -> str:
    """Return a share of ``total`` images; "n of m" for few images."""
    if value is None:
        return "-"
    if total >= MIN_IMAGES_FOR_SHARE:
        return f"{value:.1%}"
    return f"{round(value * total):,} of {total:,}"


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return ""
    charts = "".join(_learning(records, quantity) for quantity in ("loss", "accuracy"))
    return (
        '<h2>Learning</h2><p><span class="key train">In training</span> and '
        '<span class="key test">on images not trained on</span>, by epoch.</p>'
        f'<div class="charts">{charts}</div>'
    )


def _learning(records: Sequence[Mapping[str, Any]], quantity: str) -> str:
    chosen = [each for each in records if each.get(quantity) is not None]
    last = max(each["epoch"] for each in chosen) or 1
    top = 1.0 if quantity == "accuracy" else max(each[quantity] for each in chosen) or 1
    points = {
        kind: sorted((each["epoch"], each[quantity]) for each in chosen if each["kind"] == kind)
        for kind in ("train", "test")
    }
    tick = "{:.0%}" if quantity == "accuracy" else "{:.2g}"
    return _chart(quantity, f"{quantity} by epoch", points, top, tick, (last, f"{last:g}"))


def _chart(
    caption: str,
    label: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    top: float,
    tick: str,
    end: tuple[float, str],
) -> str:
    """Return the figure of the points of ``curves``, from 0 to ``top`` and to ``end``.

    The points of "test" are marked: a single one draws no line.
    """
    last, end_text = end
    lines = [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{y:g}" y2="{y:g}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:g}" text-anchor="end">{tick.format(value)}</text>'
        for value in (0, top / 2, top)
        for y in (_y(value, top),)
    ]
    for kind, given in curves.items():
        points = [(LEFT + x / last * (WIDTH - LEFT), _y(y, top)) for x, y in given]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        lines.append(f'<polyline class="{kind}" points="{line}"/>')
        if kind == "test":
            lines += [
                f'<circle class="test" r="2.5" cx="{x:.1f}" cy="{y:.1f}"/>' for x, y in points
            ]
    lines.append(f'<text x="{WIDTH}" y="{HEIGHT}" text-anchor="end">{end_text}</text>')
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(lines)}</svg></figure>"
    )


def _y(value: float, top: float) -> float:
    return 8 + (1 - value / top) * (HEIGHT - BOTTOM - 8)


def _variants(thumbnails: Mapping[str, bytes]) -> str:
    text = (
        "Training varies each image in each epoch, as in these examples. If a change turns an "
        "image into another class, or never occurs in your photos, train with --no-flip, "
        "--rotate, --zoom or --no-colour-changes."
    )
    shown = [_image(name, thumbnails) for name in thumbnails if name.startswith(VARIANT)]
    return _gallery("Variants of images", text, shown)


def _classes(content: Mapping[str, Any]) -> str:
    confusion = content["confusion"]
    rows = (
        (
            escape(each["name"]),
            f"{each['images']:,}",
            _share_of(each["precision"], sum(row[index] for row in confusion)),
            _share_of(each["recall"], each["images"]),
            each["warning"],
        )
        for index, each in enumerate(content["classes"])
    )
    return (
        "<h2>Classes</h2><p>Precision: the share of answers that are right. Recall: the "
        f"share of the class that is found. Measured on {escape(content['judged_on'])}.</p>"
        + _table("classes", ("class", "images", "precision", "recall", ""), rows)
    )


def _table(name: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    heads = "".join(f"<th>{each}</th>" for each in head)
    lines = "".join(
        f"<tr><th>{first}</th>{''.join(f'<td>{each}</td>' for each in rest)}</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table class="{name}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _confusion(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    if len(names) > MAX_CLASSES_COUNTED:
        return ""
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(_count(count, max(1, sum(counts))) for count in counts)
        + "</tr>"
        for name, counts in zip(names, confusion, strict=True)
    )
    return (
        "<h2>Confusion matrix</h2><p>Rows: true classes. Columns: predicted classes.</p>"
        '<div class="scroll"><table class="confusion"><thead><tr><th></th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _count(count: int, total: int) -> str:
    share = count / total
    kind = "dark" if share > 0.5 else "none" if count == 0 else ""
    return f'<td class="{kind}" style="--share: {share:.3f}">{count}</td>'


def _enough(learning: Mapping[str, Any] | None) -> str:
    """Return whether more images would help, and of which class."""
    if learning is None:
        return ""
    points = learning["whole"]["points"]
    curves = {
        kind: [(each["images"], (*each["interval"], each["right"])[place]) for each in points]
        for place, kind in enumerate(("low", "high", "expected"))
    }
    curves["test"] = curves["expected"][:-1]
    end = points[-1]["images"], f"{points[-1]['images']:,} images"
    label = "right answers by number of images trained on"
    shown = (
        (
            escape(each["name"]),
            *(
                f"{point['right']:.0%} ({low:.0%} to {high:.0%})"
                for point in each["points"][-2:]
                for low, high in (point["interval"],)
            ),
        )
        for each in learning["classes"]
    )
    return (
        f"<h2>Enough images?</h2><p>{escape(learning['advice'])}.</p>"
        f'<div class="charts">{_chart(label, label, curves, 1.0, "{:.0%}", end)}</div>'
        "<p>Measured out of fold with a quarter, a half and all of the images. The dashed line is "
        "extrapolated: for more images like these, with labels as right as these.</p>"
        + _table("enough", ("class", "right now", "with twice as many"), shown)
    )


def _unknown(calibration: Mapping[str, Any], left_out: Sequence[Mapping[str, Any]]) -> str:
    wanted = f"{calibration['precision']:.0%}"
    chosen = (
        f"chosen so that with a confidence of 95 % at least {wanted} of the answers given are right"
        if calibration["is_proven"]
        else f"the images are too few to prove that {wanted} of the answers given are right, so "
        "that the model answers only with at least that probability"
    )
    text = (
        f"Below a probability of {calibration['threshold']:.1%} the answer is <b>unknown</b>: "
        f"{chosen}. Chosen on {escape(calibration['measured_on'])}."
    )
    if calibration["error_after"] is not None:
        text += (
            f" The expected calibration error is {calibration['error_after']:.1%}; it was "
            f"{calibration['error_before']:.1%} before calibration."
        )
    curve = [(each["answered"], each["right"]) for each in calibration["curve"]]
    here = [(calibration["answered"], calibration["right_of_answered"] or 0)]
    figure = _chart(
        "right of those answered, by share answered",
        "share of right answers by share of images answered",
        {"train": curve, "test": here},
        1.0,
        "{:.0%}",
        (1.0, "100 % answered"),
    )
    choices = (
        (f"{each['precision']:.0%}", f"{each['threshold']:.1%}", f"{each['answered']:.1%}")
        for each in calibration["choices"]
    )
    section = (
        f"<h2>&ldquo;I don&rsquo;t know&rdquo;</h2><p>{text} The dot marks this threshold.</p>"
        f'<div class="charts">{figure}</div>'
    )
    if calibration["choices"]:
        section += (
            "<p>What the images prove for other precisions, such as that of <code>dist-net serve "
            f"RUN,precision={calibration['choices'][0]['precision']:g}</code>:</p>"
        ) + _table("choices", ("right, at least", "threshold", "answered"), choices)
    if not left_out:
        return section
    rows = (
        (
            escape(each["name"]),
            *(
                _share_of(each[name], each["others" if name == "known_lost" else "images"])
                for name in LEFT_OUT
            ),
        )
        for each in left_out
    )
    return (
        section
        + "<p>How the model answers images of an unknown class: each class was left out in turn, "
        "and its images were shown to the same heads, trained on the other classes.</p>"
        + _table("left-out", ("left out", *LEFT_OUT.values()), rows)
    )


def _images(
    title: str, text: str, entries: Sequence[Mapping[str, Any]], thumbnails: Mapping[str, bytes]
) -> str:
    items = [
        f"{_image(each['image'], thumbnails)}"
        f'<b data-image="{each.get("digest", "")}">{escape(each["answer"])}</b> '
        f"{each['probability']:.0%}<br>labelled {escape(each['label'])}<br>"
        f"<small>{escape(each['image'])}</small>"
        for each in entries
    ]
    return _gallery(title, text, items)


def _gallery(title: str, text: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    listed = "".join(f"<li>{each}</li>" for each in items)
    return f'<h2>{title}</h2><p>{text}</p><ul class="images">{listed}</ul>'


def _image(name: str, thumbnails: Mapping[str, bytes]) -> str:
    if name not in thumbnails:
        return ""
    encoded = b64encode(thumbnails[name]).decode()
    return f'<img alt="" src="data:image/png;base64,{encoded}">'


def _skipped(skipped: int) -> str:
    if not skipped:
        return ""
    are = "image was" if skipped == 1 else "images were"
    return f"<h2>Skipped</h2><p>{skipped:,} {are} left out; skipped.csv says which, and why.</p>"
