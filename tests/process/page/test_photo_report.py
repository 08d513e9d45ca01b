"""The report of photos shows its figures on a phone, in light and in dark."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net.photos.photo_statistics import JudgedImages
from dist_net.photos.report_content import report_content
from dist_net.photos.report_page import report_page

CLASSES = ["cat", "a-name-as-long-as-of-a-species-of-beetles"]


@pytest.mark.main_path
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_in_view_on_a_phone(browser: Any, tmp_path: Path, scheme: str) -> None:
    targets = np.arange(400) % 2
    logits = np.where(np.eye(2)[targets] > 0, 6, 0).astype(np.float32)
    logits[:8] = -logits[:8]
    judged = JudgedImages([str(each) for each in targets], targets, logits, np.arange(400), 10)
    run = {"name": "pets", "description": "", "fine_tuning": "", "advice": "", "skipped": 0}
    run |= {"images": {"train": 300, "validation": 100, "test": 0}}
    content = report_content(CLASSES, judged, None, judged.calibrate(0.95), [])
    points = [{"images": each, "right": 0.5, "interval": (0.4, 0.6)} for each in (5, 10, 20, 40)]
    classes = [{"name": name, "points": points} for name in CLASSES]
    learning = {"whole": {"points": points}, "classes": classes, "advice": "More of cat"}
    content |= run | {"curves": [], "learning": learning}
    file = tmp_path / "report.html"
    file.write_text(report_page(content, {}), encoding="utf-8")
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page.goto(file.as_uri())
    for name in ("measured", "classes", "enough", "choices"):
        right = page.locator(f".{name} tbody td").last.evaluate(
            "e => e.getBoundingClientRect().right"
        )
        assert right <= 390
    figures = page.locator(".measured tbody td").first
    assert figures.bounding_box()["y"] < 800
    page.close()
