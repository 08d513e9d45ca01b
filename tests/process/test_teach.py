"""A served classifier that learns: labels over HTTP, and the answers that follow."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drawn_images import draw_shapes
from process import test_serve
from process.page import conftest as page_conftest
from process.test_labels import head_of
from process.test_serve_images import content_at

Start = Callable[..., Any]
serve, browser = test_serve.serve, page_conftest.browser


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def named(**given: str) -> str:
    return f"/v1/models/run/labels?{urllib.parse.urlencode(given)}"


@pytest.mark.main_path
def test_a_label_changes_the_next_version_and_its_withdrawal_leaves_no_trace(
    serve: Start, run: Path, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    before = head_of(run)
    pool = serve(str(run), "--teach", "--workers", "1")
    fresh = draw_shapes(tmp_path / "fresh", 5, seed=9, classes=("square",)) / "square"
    for image in sorted(fresh.iterdir()):
        status, label = pool.post(named(label="box", new="1"), image.read_bytes())
        assert (status, label["label"], label["replaces"]) == (200, "box", None)
        assert label["missing"] == 5 - label["number"]

    def knows(name: str) -> bool:
        status, answer = pool.post("/v1/models/run/classify?top=9", image.read_bytes())
        return status == 200 and name in [each["label"] for each in answer["predictions"]]

    eventually(lambda: knows("box"))
    report = run / "report.json"
    names = ["box", "circle", "square", "triangle"]
    eventually(
        lambda: [each["name"] for each in json.loads(report.read_text())["classes"]] == names
    )
    eventually(
        lambda: content_at(pool.port, "/v1/models/run/report") == (run / "report.html").read_bytes()
    )
    status, listed = pool.get(named())
    assert (status, len(listed), listed[0]["number"]) == (200, 5, 5)
    for each in listed:
        pool._request("DELETE", named(number=str(each["number"])))
    eventually(lambda: not knows("box"))  # by an interim head
    eventually(lambda: head_of(run) == before)
    pool.command.process.send_signal(signal.SIGTERM)
    assert pool.command.ends() == 0
    assert head_of(run) == before


def test_what_is_no_label_is_refused_and_nothing_is_kept(
    serve: Start, run: Path, photos: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"client {'c' * 16}\nteacher {'t' * 16} name=ann\n")
    pool = serve(str(run), "--teach", "--workers", "1", "--token-file", str(tokens))
    image = (photos / "circle" / "000.jpg").read_bytes()
    teacher = {"Authorization": f"Bearer {'t' * 16}"}
    client = {"Authorization": f"Bearer {'c' * 16}"}
    assert pool.post(named(label="circle"), image, **client)[0] == 403
    assert pool._request("GET", "/v1/models/run/report", headers=client)[0] == 403
    for given, body, code, said in (
        ({"label": "circel"}, image, 400, "circle"),
        ({"label": "x" * 1000, "new": "1"}, image, 400, "1,000"),
        ({"label": "circle"}, b"no image", 400, "image"),
        ({"label": "circle"}, b"", 400, "no image"),
        ({"label": "circle", "image": "0" * 64}, b"", 404, "SHA-256"),
    ):
        status, answer = pool.post(named(**given), body, **teacher)
        assert (status, said in answer["error"]) == (code, True), answer
    assert not [*(run / "collection" / "images").iterdir()]
    for given in ({"number": ""}, {"number": "0"}, {"number": "x"}, {}):
        assert pool._request("DELETE", named(**given), headers=teacher)[0] == 400
    for digest in ("../../folder.json", "\0", "0" * 64):
        assert pool.post(named(label="circle", image=digest), **teacher)[0] == 404
    status, label = pool.post(named(label="square"), image, **teacher)
    assert (status, label["teacher"]) == (200, "ann")
    status, again = pool.post(
        named(),
        json.dumps({"image": label["image"], "label": None}).encode(),
        **teacher,
        **{"Content-Type": "application/json"},
    )
    assert (status, again["label"], again["replaces"]) == (200, None, label["number"])


def test_a_hostile_teacher_is_bounded_and_harms_no_honest_one(
    serve: Start, run: Path, photos: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    names = {"mallory": "teacher", "ann": "teacher", "bob": "client", "olga": "operator"}
    tokens.write_text("".join(f"{role} {name * 8} name={name}\n" for name, role in names.items()))
    pool = serve(str(run), "--teach", "--workers", "1", "--token-file", str(tokens))
    of = {name: {"Authorization": f"Bearer {name * 8}"} for name in names}
    image = (photos / "circle" / "000.jpg").read_bytes()
    status, label = pool.post(named(label="circle"), image, **of["mallory"])
    assert status == 200
    refused = 0
    while refused < 8:
        status, answer = pool.post(named(label="circle"), b"", **of["mallory"])
        assert status in (400, 429), answer  # a request without an image counts as well
        if status == 429:
            refused += 1
            assert answer["retry_after_s"] > 0
            honest = (photos / "circle" / f"00{refused}.jpg").read_bytes()
            assert pool.post(named(label="square"), honest, **of["ann"])[0] == 200
            assert pool.post("/v1/classify", honest, **of["bob"])[0] == 200
    _, withdrawn = pool._request("DELETE", named(teacher="mallory"), headers=of["olga"])
    assert withdrawn == [label["number"]]
    _, listed = pool._request("GET", named(), headers=of["olga"])
    current = {each["teacher"] for each in listed if each["withdrawn_by"] is None}
    assert current == {"ann"}


def test_the_example_of_a_camera_corrects_an_answer(
    serve: Start, run: Path, photos: Path, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    inbox = tmp_path / "incoming"
    inbox.mkdir()
    pool = serve(str(run), "--teach", "--workers", "1", "--inbox", str(inbox))
    # The teacher publishes the model of a copied directory once more, with its new path.
    eventually(lambda: pool.get("/v1/models/run")[1]["described"][0]["version"] == 2)
    script = Path(__file__).parents[2] / "examples" / "camera" / "camera.py"
    frame = photos / "circle" / "000.jpg"
    command = [sys.executable, script, inbox, pool.address, frame, "square"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    before, labelled, after = done.stdout.splitlines()
    assert labelled == "labelled: square"
    assert before.startswith("before: circle")
    assert after.startswith("after: ")
    first, *_, last = map(json.loads, (inbox / "answers.jsonl").read_text().splitlines())
    assert last["version"] > first["version"]
    assert last["probability"] != first["probability"]


def test_an_answer_is_corrected_by_one_key_and_undone_on_a_phone(
    browser: Any, serve: Start, run: Path, photos: Path
) -> None:
    expect = pytest.importorskip("playwright.sync_api").expect
    pool = serve(str(run), "--teach", "--workers", "1")
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto(f"{pool.address}/")
    image = (photos / "circle" / "001.jpg").read_bytes()
    page.locator("#image").set_input_files(
        {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": image}
    )
    teach = page.get_by_role("form", name="Which class is it?")
    second = teach.locator("[data-key='2']")
    expect(second).to_be_visible()
    name = second.inner_text().removeprefix("2 ")
    page.keyboard.press("2")
    expect(page.locator("#taught")).to_contain_text(f"Labelled as {name}")
    assert pool.get(named())[1][0]["label"] == name
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name=f"Undo label 1, {name}").click()
    expect(page.get_by_role("button", name=f"Undo label 1, {name}")).to_be_disabled()
    page.get_by_label("Another class").fill("hexagon")
    page.get_by_label("new", exact=True).check()
    page.get_by_role("button", name="Label", exact=True).click()
    expect(page.locator("#taught")).to_contain_text("Labelled as hexagon")
    page.get_by_label("Another class").fill("hexagn")
    page.get_by_role("button", name="Label", exact=True).click()
    expect(page.locator("#taught")).to_contain_text("did you mean 'hexagon'")
    context.close()


def test_images_that_clients_sent_are_labelled_by_one_key_each_and_the_report_in_place(
    browser: Any, serve: Start, run: Path, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    expect = pytest.importorskip("playwright.sync_api").expect
    pool = serve(str(run), "--teach", "--collect", "--workers", "1")
    sent = sorted(draw_shapes(tmp_path / "sent", 4, seed=11).rglob("*.jpg"))
    sent.append(tmp_path / "copy.jpg")
    Image.open(sent[1]).save(sent[-1], quality=60)
    for number, image in enumerate(sent):
        private = {"X-Do-Not-Collect": "1"} if number == 0 else {}
        status, _ = pool.post("/v1/models/run/classify", image.read_bytes(), **private)
        assert status == 200

    def queued() -> dict[str, dict[str, Any]]:
        return {each["image"]: each for each in pool.get("/v1/models/run/queue")[1]}

    digests = [hashlib.sha256(image.read_bytes()).hexdigest() for image in sent]
    copies = {digests[1], digests[-1]}
    eventually(lambda: {*digests[2:-1]} <= {*queued()} and copies & {*queued()})
    assert digests[0] not in queued()
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(f"{pool.address}/")
    page.get_by_role("button", name="Label the image that teaches most").click()
    expect(page.locator("#preview")).to_be_visible()

    def label_one() -> set[str]:
        """Return the images that have a label once the next image is shown, or none waits."""
        preview = page.locator("#preview")
        before = preview.get_attribute("src")
        page.keyboard.press("1")
        eventually(lambda: preview.is_hidden() or preview.get_attribute("src") != before)
        return {each["image"] for each in pool.get(named())[1]}

    while page.locator("#alike").is_hidden():
        label_one()
    page.get_by_label("nearly equal images").uncheck()
    assert len(copies & label_one()) == 1
    while page.locator("#preview").is_visible():
        labelled = label_one()
    expect(page.locator("#queue-left")).to_contain_text("No image waits")
    assert {*digests[2:-1]} <= labelled
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()

    for digest in digests[1:4]:  # of circles
        assert pool.post(named(label="square", image=digest))[0] == 200
    page = browser.new_page()

    def has_mistakes() -> bool:
        page.goto(f"{pool.address}/report/run")
        page.locator("h1").wait_for()
        return bool(page.locator("[data-image] ~ select").count())

    eventually(has_mistakes)
    expect(page.locator("#describes")).to_contain_text("The figures describe the model of")
    shown = page.locator("[data-image]").first.get_attribute("data-image")
    page.locator(f"[data-image='{shown}'] ~ select").first.select_option("square")
    expect(page.get_by_text("Labelled as square.")).to_be_visible()
    newest = next(each for each in pool.get(named())[1] if each["image"] == shown)
    assert newest["label"] == "square"
    page.close()
