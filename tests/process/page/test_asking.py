"""An image goes in, in every way that a browser has, and an answer or plain words come out."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dist_net

expect = pytest.importorskip("playwright.sync_api").expect
SAMPLES = Path(dist_net.__file__).parent / "serving" / "http" / "page" / "samples"
PNG = (SAMPLES / "bag.png").read_bytes()

HAND_OVER = """([kind, bytes]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], "mine.png", { type: "image/png" }));
    const event = kind === "paste"
        ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })
        : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
    document.body.dispatchEvent(event);
    return event.defaultPrevented;
}"""


def choose(page: Any) -> None:
    page.get_by_label("choose a file").set_input_files(
        {"name": "mine.png", "mimeType": "image/png", "buffer": PNG}
    )


def paste(page: Any) -> None:
    assert page.evaluate(HAND_OVER, ["paste", list(PNG)])


def drop(page: Any) -> None:
    assert page.evaluate(HAND_OVER, ["drop", list(PNG)])


def test_a_sample_is_answered_with_five_bars_and_the_time_each_part_took(
    visit: Any, gateway: Any
) -> None:
    page = visit().page
    page.get_by_role("button", name="A bag").click()
    expect(page.locator("#verdict")).to_have_text(re.compile(r"^Bag 83\.5 %, in [\d.]+ m?s$"))
    rows = page.get_by_role("list", name="The five most likely classes").get_by_role("listitem")
    expect(rows).to_have_text(["Bag83.5 %", "Coat12.0 %", "Shirt4.0 %", "Boot0.5 %", "Hat< 0.1 %"])
    assert rows.locator("meter").evaluate_all("all => all.map(each => each.value)") == [
        0.8345,
        0.12,
        0.04,
        0.005,
        1e-5,
    ]
    shown = page.locator("#times div").all_inner_texts()
    parts = dict(text.split("\n") for text in shown)
    assert parts.pop("Network").endswith("s")
    assert parts == {"Queue": "0.25 ms", "Decoding": "1.50 ms", "Compute": "3.13 ms"}
    expect(page.locator("#answered-by")).to_have_text("Answered by fashion, version 12")
    [(path, headers, body)] = gateway.requests
    assert path == "/v1/models/fashion/classify?top=5"
    assert (headers["Content-Type"], body) == ("image/png", PNG)


def test_every_sample_is_a_image_of_its_own(visit: Any, gateway: Any) -> None:
    gateway.serves("fashion", labels=["T-shirt/top", "tench"])
    page = visit().page
    buttons = page.get_by_role("group", name="Or try one of these, drawn for dist_net").get_by_role(
        "button"
    )
    expect(buttons).to_have_count(6)
    for button in buttons.all():
        with page.expect_response(re.compile("classify")):
            button.click()
    assert sorted(body for _, _, body in gateway.requests) == sorted(
        path.read_bytes() for path in SAMPLES.iterdir()
    )


@pytest.mark.parametrize("way", [choose, paste, drop])
def test_an_image_of_ones_own_is_shown_and_asked(
    visit: Any, gateway: Any, way: Callable[[Any], None]
) -> None:
    page = visit().page
    way(page)
    expect(page.locator("#verdict")).to_contain_text("Bag")
    expect(page.locator("#drop")).to_contain_text("mine.png")
    assert page.locator("#preview").evaluate(
        "async image => (await image.decode(), image.naturalWidth)"
    )
    assert [body for _, _, body in gateway.requests] == [PNG]


def test_pasted_text_is_left_to_the_browser(visit: Any, gateway: Any) -> None:
    page = visit().page
    was_taken = page.evaluate(
        "() => !document.body.dispatchEvent(new ClipboardEvent('paste', "
        "{ clipboardData: new DataTransfer(), bubbles: true, cancelable: true }))"
    )
    assert not was_taken
    assert gateway.requests == []


def test_nothing_is_asked_without_a_image(visit: Any, gateway: Any) -> None:
    page = visit().page
    page.get_by_role("button", name="Ask").click()
    assert page.locator("#image").evaluate("input => input.validity.valueMissing")
    assert gateway.requests == []


def test_an_image_that_is_chosen_first_waits_until_the_models_are_known(
    visit: Any, gateway: Any
) -> None:
    models, gateway.pool["models"] = gateway.pool["models"], []
    page = visit().page
    choose(page)
    expect(page.locator("#preview")).to_be_visible()
    assert gateway.requests == []
    gateway.pool["models"] = models
    expect(page.locator("#verdict")).to_contain_text("Bag")
    [(path, _, _)] = gateway.requests
    assert path.startswith("/v1/models/fashion/classify")


def test_the_same_image_can_be_asked_again(visit: Any, gateway: Any) -> None:
    page = visit().page
    page.get_by_role("button", name="A bag").click()
    expect(page.locator("#verdict")).to_contain_text("Bag")
    with page.expect_response(re.compile("classify")):
        page.get_by_role("button", name="Ask again").click()
    assert [body for _, _, body in gateway.requests] == [PNG, PNG]


def test_an_answer_that_is_overtaken_is_not_shown(visit: Any, gateway: Any) -> None:
    page = visit().page
    gateway.may_answer.clear()
    with page.expect_event("requestfailed") as abandoned:
        page.get_by_role("button", name="A bag").click()
        gateway.was_asked.wait(30)
        gateway.reply = gateway.reply | {"version": 13}
        page.get_by_role("button", name="Trousers").click()
    assert abandoned.value.url.endswith("/v1/models/fashion/classify?top=5")
    gateway.may_answer.set()
    expect(page.locator("#answered-by")).to_have_text("Answered by fashion, version 13")
    expect(page.locator("#problem")).to_be_empty()


REFUSALS = {
    400: "The image could not be read.",
    404: "The pool does not serve this model.",
    413: "The image is larger than the pool allows.",
    415: "The pool does not accept files of this kind.",
    503: "The pool cannot answer now.",
    504: "The answer took too long.",
    500: "The pool failed to answer (500).",
}


def test_a_refusal_is_told_in_plain_words_and_with_the_reason(visit: Any, gateway: Any) -> None:
    page = visit().page
    page.get_by_role("button", name="A bag").click()
    expect(page.locator("#answer")).to_be_visible()
    for code, words in REFUSALS.items():
        gateway.refuse(code, "it is <b>so</b>")
        page.get_by_role("button", name="Ask again").click()
        alert = page.get_by_role("alert")
        expect(alert).to_have_text(f"{words}Reason: it is <b>so</b>")
        expect(page.locator("#answer")).to_be_hidden()
        expect(page.locator("#verdict")).to_be_empty()


def test_a_pool_that_is_full_says_when_to_come_back(visit: Any, gateway: Any) -> None:
    gateway.refuse(503, "full", Retry_After="3")
    page = visit().page
    page.get_by_role("button", name="A bag").click()
    expect(page.get_by_role("alert")).to_contain_text("Try again in 3 s.")


def test_after_a_refusal_an_answer_takes_its_place(visit: Any, gateway: Any) -> None:
    reply = gateway.reply
    gateway.refuse(503, "full")
    page = visit().page
    page.get_by_role("button", name="A bag").click()
    expect(page.get_by_role("alert")).to_contain_text("full")
    gateway.code, gateway.reply = 200, reply
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator("#verdict")).to_contain_text("Bag")
    expect(page.locator("#problem")).to_be_empty()


def test_a_gateway_out_of_reach_is_named(visit: Any) -> None:
    page = visit().page
    expect(page.get_by_role("status").first).to_have_text("Ready")
    page.route("**/classify*", lambda route: route.abort("connectionrefused"))
    page.get_by_role("button", name="A bag").click()
    expect(page.get_by_role("alert")).to_have_text("The gateway cannot be reached.")


def test_a_file_that_is_no_image_shows_none(visit: Any, gateway: Any) -> None:
    gateway.refuse(400, "this is text")
    page = visit().page
    page.locator("#image").set_input_files(
        {"name": "notes.png", "mimeType": "image/png", "buffer": b"text"}
    )
    expect(page.get_by_role("alert")).to_contain_text("this is text")
    expect(page.locator("#preview")).to_be_hidden()
    expect(page.locator("#drop")).to_contain_text("notes.png")


def test_the_model_that_is_chosen_is_asked_and_says_what_it_knows(visit: Any, gateway: Any) -> None:
    gateway.serves(
        "dark/net 53", classes=1000, labels=["tench", *(f"class_{i}" for i in range(11))]
    )
    page = visit().page
    expect(page.locator("#knows")).to_have_text("10 classes: T-shirt/top, Trouser")
    page.get_by_label("Model").select_option("dark/net 53")
    expect(page.locator("#knows")).to_have_text(re.compile("^1,000 .* class 8, …$"))
    with page.expect_response(re.compile("classify")):
        page.get_by_role("button", name="A wall clock").click()
    assert gateway.requests[0][0] == "/v1/models/dark%2Fnet%2053/classify?top=5"


def test_a_choice_of_one_model_is_none(visit: Any) -> None:
    page = visit().page
    expect(page.get_by_role("status").first).to_have_text("Ready")
    expect(page.get_by_label("Model")).to_be_hidden()


def test_a_model_without_images_says_how_to_ask_it(visit: Any, gateway: Any) -> None:
    gateway.serves("vectors", takes_images=False)
    page = visit().page
    page.get_by_label("Model").select_option("vectors")
    expect(page.locator("#knows")).to_contain_text("vectors does not take images")
    expect(page.get_by_role("button", name="Ask")).to_be_hidden()
    page.get_by_label("Model").select_option("fashion")
    expect(page.get_by_role("button", name="Ask")).to_be_visible()


def test_several_images_are_answered_in_a_table_that_can_be_saved(visit: Any, gateway: Any) -> None:
    page = visit().page
    names = ["b.png", "=a.png", "über.png"]
    page.locator("#image").set_input_files(
        [{"name": name, "mimeType": "image/png", "buffer": PNG} for name in names]
    )
    rows = page.get_by_role("table", name="An answer for each image").get_by_role("row")
    expect(rows).to_have_text([re.compile("^Image"), *(f"{name}Bag83.5 %" for name in names)])
    expect(page.locator("#answer")).to_be_hidden()
    with page.expect_download() as download:
        page.get_by_role("link", name="Save as CSV").click()
    content = download.value.path().read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    read = [*csv.reader(content.decode("utf-8-sig").splitlines())]
    assert read[1:] == [[name, "Bag", "0.8345"] for name in ("b.png", "'=a.png", "über.png")]
    assert len(gateway.requests) == 3
