"""What is there to try: fitting samples, the image as the model sees it, the request as code."""

import json
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dist_net.images.fitting import FITTINGS, fit_image, letterbox
from process.page.conftest import image_of

expect = pytest.importorskip("playwright.sync_api").expect

HELD_OUT = "Or try an image of the folder that the model was made from"
DRAWN = "Or try one of these, drawn for dist_net"
PIXELS = """(canvas) => [canvas.height, canvas.width,
    ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]"""
DRAW = f"""async ([bytes, model]) => {{
    const canvas = document.createElement("canvas");
    const {{ drawAsSeen }} = await import("/fitting.js");
    await drawAsSeen(canvas, new Blob([new Uint8Array(bytes)], {{ type: "image/png" }}), model);
    return ({PIXELS})(canvas);
}}"""


def choose(page: Any, image: Image.Image, name: str = "mine.png") -> None:
    """Hands the page an image."""
    page.locator("#image").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": png(image)}
    )


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def smooth_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """One on which it shows which part of it is taken, and whether that is turned or stretched."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, len(mode)), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


# Samples


def test_samples_that_a_run_held_out_take_the_place_of_the_drawn_ones(
    visit: Any, gateway: Any
) -> None:
    gateway.offers("fashion", "ankle_boot", "Tasche/groß")
    page = visit().page
    buttons = page.get_by_role("group", name=HELD_OUT).get_by_role("button")
    expect(buttons).to_have_text(["ankle boot", "Tasche/groß"])
    buttons.nth(1).click()
    expect(page.locator("#verdict")).to_contain_text("Bag")
    expect(page.locator("#drop")).to_contain_text("Tasche-groß-2.png")
    assert [body for _, _, body in gateway.requests] == [image_of(1)]


def test_each_model_has_its_own_samples(visit: Any, gateway: Any) -> None:
    gateway.offers("flowers", "rose")
    page = visit().page
    expect(page.get_by_role("group", name=DRAWN).get_by_role("button")).to_have_count(3)
    page.get_by_label("Model").select_option("flowers")
    expect(page.get_by_role("group", name=HELD_OUT).get_by_role("button")).to_have_text(["rose"])
    page.get_by_label("Model").select_option("fashion")
    page.get_by_role("group", name=DRAWN).get_by_role("button", name="A bag").click()
    expect(page.locator("#verdict")).to_contain_text("Bag")


@pytest.mark.parametrize(
    ("labels", "offered"),
    [
        (["tench", "goldfish"], ["A hot-air balloon", "A traffic light", "A wall clock"]),
        (["T-shirt/top"], ["A T-shirt, in grey", "Trousers, in grey", "A bag, in grey"]),
        (["cat", "dog"], []),
    ],
)
def test_the_page_offers_images_of_the_classes_of_a_model_alone(
    visit: Any, gateway: Any, labels: list[str], offered: list[str]
) -> None:
    gateway.serves("fashion", labels=labels)
    page = visit().page
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.locator("#knows")).to_contain_text(labels[0])
    expect(page.locator("#samples button")).to_have_count(len(offered))
    for name in offered:
        expect(page.locator("#samples").get_by_role("button", name=name)).to_be_visible()
    expect(page.locator("#samples")).to_be_visible(visible=bool(offered))


def test_a_new_version_brings_its_samples(visit: Any, gateway: Any) -> None:
    gateway.offers("fashion", "coat")
    page = visit().page
    buttons = page.get_by_role("group", name=HELD_OUT).get_by_role("button")
    expect(buttons).to_have_text(["coat"])
    gateway.samples["fashion"] = ["coat", "hat"]
    gateway.serves("fashion", samples=2, version=2)
    expect(buttons).to_have_text(["coat", "hat"])


def test_samples_that_cannot_be_had_are_tried_again(visit: Any, gateway: Any) -> None:
    gateway.offers("fashion", "coat")
    page = visit().page
    expect(page.get_by_role("group", name=HELD_OUT)).to_be_visible()
    page.route("**/samples", lambda route: route.abort())
    page.reload()
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.locator("#samples")).to_be_hidden()
    page.unroute("**/samples")
    expect(page.get_by_role("group", name=HELD_OUT)).to_be_visible()


def test_samples_behind_a_token_are_shown(visit: Any, gateway: Any) -> None:
    gateway.token = "a secret"
    gateway.offers("fashion", "coat")
    page = visit().page
    page.get_by_label("This pool needs a token.").fill("a secret")
    page.get_by_role("button", name="Use token").click()
    image = page.get_by_role("button", name="coat").locator("img")
    assert image.evaluate("async image => (await image.decode(), image.naturalWidth)") == 40


# Unknown


def test_an_answer_that_is_unknown_says_so_and_what_it_would_have_taken(
    visit: Any, gateway: Any
) -> None:
    gateway.reply |= {"unknown": True, "unknown_below": 0.875}
    gateway.serves("fashion", unknown_below=0.875)
    page = visit().page
    expect(page.locator("#knows")).to_contain_text("; below 87.5 % the class is unknown")
    page.get_by_role("button", name="A bag").click()
    said = (
        r"^Unknown The likeliest class is Bag: 83\.5 %, in [\d.]+ m?s\. The model is certain from "
        r"87\.5 % on\. More training images lower this threshold\.$"
    )
    expect(page.locator("#verdict")).to_have_text(re.compile(said))
    expect(page.get_by_role("listitem").filter(has_text="Bag")).to_be_visible()
    gateway.reply |= {"unknown": False, "unknown_below": 0.75}
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator("#verdict")).to_have_text(re.compile(r"^Bag 83\.5 %, in [\d.]+ m?s$"))


# As the model sees it


@pytest.mark.main_path
def test_an_image_is_drawn_as_the_worker_fits_it(visit: Any) -> None:
    page = visit().page
    for size in ((90, 60), (50, 120)):
        image = smooth_image(*size)
        pixels = np.asarray(image)
        for fitting in (*FITTINGS.keys() - {"exact"}, "letterbox"):
            model = {"input_shape": [24, 32, 3], "fitting": fitting}
            seen = pixels_of(page.evaluate(DRAW, [list(png(image)), model]))
            if fitting == "letterbox":
                expected = 255 * letterbox(pixels, 24, 32)
            else:
                expected = fit_image(pixels, (24, 32, 3), fitting).astype(np.float32)
            assert np.abs(seen - expected).mean() < 5, (size, fitting)


def test_a_model_of_grey_images_sees_grey_on_white(visit: Any, gateway: Any) -> None:
    gateway.serves("fashion", input_shape=[28, 32, 1], fitting="crop")
    page = visit().page
    expect(page.locator("#knows")).to_be_visible()
    image = smooth_image(56, 56, "RGBA")
    choose(page, image)
    told = "Input of the model: 32 \N{MULTIPLICATION SIGN} 28"
    expect(page.locator("#seen")).to_contain_text(told)
    expected = fit_image(BytesIO(png(image)), (28, 32, 1), "crop").astype(np.float32)
    seen = pixels_of(page.locator("#seen canvas").evaluate(PIXELS))
    assert (seen[..., 0] == seen[..., 2]).all()
    assert np.abs(seen - expected).mean() < 3


def test_a_poll_meanwhile_does_not_keep_the_image_from_being_shown(visit: Any) -> None:
    page = visit().page
    expect(page.locator("#knows")).to_be_visible()
    page.evaluate(
        "() => { const decode = createImageBitmap; const polled = new Promise((resolve) =>"
        " { window.goOn = resolve; });"
        " window.createImageBitmap = async (image) => (await polled, decode(image)); }"
    )
    choose(page, smooth_image(8, 8))
    for _ in range(2):  # the first may have been on its way
        page.wait_for_event("requestfinished", lambda request: request.url.endswith("/pool"))
    page.evaluate("goOn()")
    expect(page.locator("#seen")).to_be_visible()


def test_what_a_model_would_refuse_or_a_browser_cannot_read_is_not_shown(
    visit: Any, gateway: Any
) -> None:
    gateway.serves("fashion", fitting="exact")
    page = visit().page
    expect(page.locator("#knows")).to_be_visible()
    choose(page, smooth_image(28, 28))
    expect(page.locator("#seen")).to_be_visible()
    choose(page, smooth_image(29, 28))
    expect(page.locator("#seen")).to_be_hidden()
    choose(page, smooth_image(28, 28))
    expect(page.locator("#seen")).to_be_visible()
    page.locator("#image").set_input_files(
        {"name": "notes.png", "mimeType": "image/png", "buffer": b"text"}
    )
    expect(page.locator("#seen")).to_be_hidden()


def pixels_of(told: list[int]) -> np.ndarray:
    """What is on a canvas, (H, W, 3): from its height, its width and its values."""
    height, width, *values = told
    return np.array(values, np.float32).reshape(height, width, 4)[..., :3]


# The request as code


@pytest.mark.parametrize("token", ["", "a secret"])
@pytest.mark.parametrize("language", ["curl", "Python"])
def test_the_request_as_code_asks_what_the_page_asked(
    visit: Any, gateway: Any, tmp_path: Path, language: str, token: str
) -> None:
    gateway.token = token
    name = """it's "my" $HOME.png"""
    page = visit().page
    if token:
        page.get_by_label("This pool needs a token.").fill(token)
        page.get_by_role("button", name="Use token").click()
    expect(page.locator("#state")).to_have_text("Ready")
    choose(page, smooth_image(8, 8), name)
    expect(page.locator("#verdict")).not_to_be_empty()
    page.get_by_text("Send this request without the page").click()
    code = page.get_by_role("figure", name=language).locator("code").inner_text()
    assert "a secret" not in page.content()
    expect(page.get_by_text("Save your token in a file")).to_be_visible(visible=bool(token))

    [(path, _, body)] = gateway.requests
    (tmp_path / name).write_bytes(body)
    (tmp_path / "token").write_text("a secret\n")
    command = ["sh", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=True)
    assert (gateway.requests[1][0], gateway.requests[1][2]) == (path, body)
    assert gateway.requests[1][1].get("Authorization", "") == (token and f"Bearer {token}")
    if language == "curl":
        assert json.loads(ran.stdout)["predictions"][0]["label"] == "Bag"


def test_code_is_copied(visit: Any, gateway: Any) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"]).page
    page.get_by_role("button", name="A bag").click()
    page.get_by_text("Send this request without the page").click()
    figure = page.get_by_role("figure", name="curl")
    figure.get_by_role("button", name="Copy").click()
    expect(figure.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == figure.locator("code").inner_text()
    assert f"{gateway.address}v1/models/fashion/classify?top=5" in copied
