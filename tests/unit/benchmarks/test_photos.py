"""What ``scripts/bench photos`` draws, and makes of its measurements."""

from pathlib import Path

from PIL import Image

from benchmarks.drawn_images import CORNERS, LARGEST_SIDE, MIN_SIDE, draw_folder
from benchmarks.photos import INFERENCE, Case, ratios

CASES = [
    Case(INFERENCE, "plain", "0.1", 8, 20_000, 1),
    Case(INFERENCE, "fast", "0.1", 8, 5_000, 1),
    Case(INFERENCE, "fast", "0.1", 1, 6_000, 1),
    Case(INFERENCE, "openvino", "2026", 8, 10_000, 1),
    Case("training_step", "dist_net", "0.1", 32, 60_000, 3_000_000_000),
    Case("training_step", "pytorch", "2.13", 32, 80_000, 4_000_000_000),
    Case("folder", "fast", "0.1", 8, 40_000, None),
]


def test_a_case_is_compared_with_the_same_of_a_peer() -> None:
    assert ratios(CASES) == {
        "plain_per_image_batch_8_to_fast": 4.0,
        "plain_per_image_batch_8_to_openvino": 2.0,
        "fast_per_image_batch_8_to_openvino": 0.5,
        "training_step_to_pytorch": 0.75,
        "training_step_peak_memory_to_pytorch": 0.75,
    }


def test_drawn_images_are_those_of_their_seed_and_part(tmp_path: Path) -> None:
    folders = [
        draw_folder(tmp_path / name, 1, seed, part)
        for name, seed, part in (("a", 0, ""), ("b", 0, ""), ("c", 1, ""), ("d", 0, "test"))
    ]
    files = [sorted(folder.rglob("*.jpg")) for folder in folders]
    assert [each.parent.name for each in files[0]] == sorted(CORNERS)
    one, same, *others = ([each.read_bytes() for each in of] for of in files)
    assert one == same
    assert one not in others
    for path in files[0]:
        with Image.open(path) as image:
            assert all(MIN_SIDE <= side <= LARGEST_SIDE for side in image.size)
