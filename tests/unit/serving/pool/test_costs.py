"""What requests cost by their size, and where long ones may run."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from dist_net.serving.pool.open_requests import FALLS, MAX_RISE, RISES, Costs, are_alike, size_of
from dist_net.serving.pool.requests import InferenceRequest


def sized(size: int, is_image: bool = False) -> InferenceRequest:
    return InferenceRequest("net", b"", 1, is_image, size=size)


def test_sizes_cost_what_was_measured_and_unknown_ones_rather_more() -> None:
    costs = Costs()
    assert costs.of(sized(100)) == 0
    costs.learn(sized(100), 0.1)
    costs.learn(sized(1 << 20), 3.0)
    assert costs.of(sized(127)) == costs.of(sized(10)) == pytest.approx(0.1)
    assert costs.of(sized(400)) == pytest.approx(0.4)
    assert costs.of(sized(1 << 22)) == pytest.approx(12)
    assert costs.of(sized(100, is_image=True)) == 0
    own = Costs(costs)
    own.learn(sized(100), 0.5)
    assert (own.of(sized(100)), own.of(sized(1 << 20))) == (0.5, 3.0)


def test_a_cost_rises_soon_and_falls_slowly_whatever_an_accident_takes() -> None:
    costs = Costs()
    costs.learn(sized(1), 0.1)
    costs.learn(sized(1), 100.0)
    risen = 0.1 + RISES * (MAX_RISE - 1) * 0.1
    assert costs.of(sized(1)) == pytest.approx(risen)
    costs.learn(sized(1), 0.1)
    assert costs.of(sized(1)) == pytest.approx(risen - FALLS * (risen - 0.1))


def test_rows_share_a_batch_if_neither_waits_for_the_other() -> None:
    assert are_alike(0.1, 0.15)
    assert are_alike(0.001, 0.004)
    assert not are_alike(0.001, 0.006)
    assert not are_alike(0.4, 0.1)


@pytest.mark.parametrize("size", [(1, 1), (37, 501), (3000, 2000)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "comment": b"x" * 60_000}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"save_all": True}),
    ],
)
def test_the_size_of_an_image_is_read_from_its_header(
    kind: str, options: dict[str, object], size: tuple[int, int]
) -> None:
    image, file = Image.new("RGB", size), io.BytesIO()
    if "save_all" in options:
        options = options | {"append_images": [Image.new("RGB", size, "red")]}
    image.save(file, kind, **options)
    content = file.getvalue()
    request = InferenceRequest("net", memoryview(content), is_image=True)
    assert size_of(request) == len(content) + size[0] * size[1]


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r", b"P6 1 1 255 abc", b"\xff\xd8" + b"\xff" * 999]
)
def test_an_image_without_a_readable_size_counts_as_large(content: bytes) -> None:
    assert size_of(InferenceRequest("net", content, is_image=True)) > 10**7
