"""Recreate the images of README and docs: .venv/bin/python scripts/make_images.py [RUN]

Trains Fashion-MNIST unless a run is passed, copies the run's plots, then serves the run and takes
screenshots of the page in the system's Chromium. Needs the extras ``plots``, ``web``,
``pretrained`` and ``test``, and takes about a minute.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

from dist_net import Client

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
DIST_NET = [sys.executable, "-m", "dist_net"]


def main() -> None:
    """Train, serve, take screenshots, and replace the files in docs/images."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        run = Path(sys.argv[1] if sys.argv[1:] else f"{directory}/clothes")
        if not sys.argv[1:]:
            subprocess.run([*DIST_NET, "train", "fashion-mnist", "--run-dir", run], check=True)
        save(run / "training.png", "learning_curve.png", width=1200)
        with serving(f"clothes={run}") as http:
            visit(http, Path(directory, "page.png"))
        save(Path(directory, "page.png"), "page.png", width=1100)
        run = trained_on_signs(Path(directory))
        photograph(run / "report.html", Path(directory, "report.png"))
        save(Path(directory, "report.png"), "report.png", width=800)
        with serving(f"signs={run}") as http:
            try_signs(http, Path(directory, "photos_page.png"))
        save(Path(directory, "photos_page.png"), "photos_page.png", width=480)


def save(source: Path, name: str, width: int) -> None:
    """Scale an image to a width, with 128 colours, which limits it to about 100 kB."""
    with Image.open(source) as image:
        height = round(image.height * width / image.width)
        small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    small.quantize(128, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)
    print(f"docs/images/{name}: {(IMAGES / name).stat().st_size // 1000} kB")


@contextmanager
def serving(model: str) -> Iterator[str]:
    """Serve a model. Yield its address."""
    free_port = ["--http", "127.0.0.1:0"]
    with subprocess.Popen(
        [*DIST_NET, "serve", model, *free_port], stdout=subprocess.PIPE, text=True
    ) as pool:
        assert pool.stdout is not None
        ready = next(line for line in pool.stdout if line.startswith("READY"))
        http = ready.strip().partition("http=")[2]
        try:
            yield http
        finally:
            pool.send_signal(signal.SIGINT)


def trained_on_signs(directory: Path) -> Path:
    """Train on drawn road signs, three of them in the wrong folder. Return the run directory."""
    signs, run = directory / "signs", directory / "run"
    subprocess.run([sys.executable, ROOT / "examples/photos/draw.py", signs, "40"], check=True)
    for number in range(3):
        file = signs / "stop" / f"{number:03}.jpg"
        file.rename(signs / "no entry" / f"misplaced-{number}.jpg")
    subprocess.run([*DIST_NET, "train", signs, "--run-dir", run], check=True)
    return run


@contextmanager
def browsing(width: int, height: int) -> Iterator[Page]:
    """Open a page in the system's Chromium."""
    chromium = shutil.which("chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        viewport: ViewportSize = {"width": width, "height": height}
        yield browser.new_page(viewport=viewport, color_scheme="light")
        browser.close()


def photograph(file: Path, path: Path) -> None:
    """Take a screenshot of a whole HTML file."""
    with browsing(1000, 1500) as page:
        page.goto(file.as_uri())
        page.screenshot(path=path, full_page=True)


def try_signs(http: str, path: Path) -> None:
    """Classify a held-out image on the page, and take a screenshot of the form and the answer."""
    with browsing(480, 1000) as page:
        page.goto(http)
        samples = page.get_by_role("group", name="the model was made from")
        samples.get_by_role("button").first.click()
        page.locator("#verdict:not(:empty)").wait_for()
        page.locator("#seen").wait_for()
        page.locator("#ask").screenshot(path=path)


def visit(http: str, path: Path) -> None:
    """Click a sample while other requests keep the pool busy, and take a screenshot."""
    with Image.open(ROOT / "examples" / "fashion_mnist" / "boot.png") as image:
        boot = np.asarray(image)
    with browsing(1280, 1040) as page, Client(http) as client:
        page.goto(http)
        for second in range(15):
            pending = [client.submit("clothes", boot) for _ in range(200 + 40 * (second % 5))]
            for each in pending:
                each.result()
            page.wait_for_timeout(1000)
        page.get_by_role("button", name="A bag").click()
        page.locator("#verdict:not(:empty)").wait_for()
        page.wait_for_timeout(1500)
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=path)


if __name__ == "__main__":
    main()
