"""The page in a real browser, Debian's Chromium, in front of a gateway that says what a test wants.

The gateway here serves the page's files under the policy that the real one sends, and plays the
rest; it is stated, so that every state of a pool can be shown without bringing it about.
"""

import json
import shutil
import threading
from collections.abc import Iterator
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

import dist_net

FILES = Path(dist_net.__file__).parent / "serving" / "http" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
CHROMIUM_OPTIONS = (
    "--no-sandbox",
    # Chromium keeps a process in reserve for the next page, which takes a fifth of the CPU time.
    "--disable-features=SpareRendererForSitePerProcess",
)
COUNTS = ("admitted", "answered", "refused", "expired", "failed", "cancelled")


def model_status(name: str, **changes: Any) -> dict[str, Any]:
    """A model of `/pool` that has done nothing yet."""
    idle: dict[str, Any] = {
        "name": name,
        "version": 1,
        "is_ready": True,
        "reason": "",
        "takes_images": True,
        "classes": 10,
        "labels": ["T-shirt/top", "Trouser"],
        "input_shape": [28, 28],
        "fitting": "stretch",
        "unknown_below": 0.0,
        "samples": 0,
        "requests_per_s": 0.0,
        "latency_ms": {"p50": None, "p90": None, "p99": None},
        "batch_rows": {},
    }
    return idle | dict.fromkeys(COUNTS, 0) | changes


def worker_status(name: str, **changes: Any) -> dict[str, Any]:
    """A worker of `/pool` that has done nothing yet."""
    idle = {"host": "silver", "process_id": 7, "state": "idle", "batches": 0, "requests": 0}
    return {"name": name, "heard_s_ago": 0.1} | idle | changes


def image_of(number: int) -> bytes:
    """A PNG file of 40 by 20 pixels, darker the greater the number is."""
    file = BytesIO()
    Image.new("RGB", (40, 20), (250 - 10 * number,) * 3).save(file, "PNG")
    return file.getvalue()


class StatedGateway:
    """What the gateway is to say, and the ``requests`` that it got: (path, headers, body)."""

    def __init__(self) -> None:
        self.address = ""
        self.token = ""
        self.samples: dict[str, list[str]] = {}
        self.pool: dict[str, Any] = {
            "is_ready": True,
            "is_draining": False,
            "uptime_s": 7265.0,
            "workers": [worker_status("one"), worker_status("two")],
            "queue": {
                "requests": 3,
                "bytes": 2 << 20,
                "request_limit": 1024,
                "byte_limit": 256 << 20,
            },
            "models": [model_status("fashion")],
        }
        likely = [
            ("Bag", 0.8345),
            ("Coat", 0.12),
            ("Shirt", 0.04),
            ("Boot", 0.005),
            ("Hat", 1e-5),
        ]
        predictions = [
            {"index": index, "label": label, "probability": probability}
            for index, (label, probability) in enumerate(likely)
        ]
        timings = {"queue_ms": 0.25, "prepare_ms": 1.5, "compute_ms": 3.125}
        answer = {"model": "fashion", "version": 12, "predictions": predictions, "timings": timings}
        self.code, self.headers, self.reply = 200, dict[str, str](), dict[str, Any](answer)
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.was_asked = threading.Event()
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    def serves(self, name: str, **changes: Any) -> None:
        """Puts a model into the pool, in the place of the one of its name."""
        self._put("models", model_status(name, **changes))

    def employs(self, name: str, **changes: Any) -> None:
        """Puts a worker into the pool, in the place of the one of its name."""
        self._put("workers", worker_status(name, **changes))

    def _put(self, kind: str, thing: dict[str, Any]) -> None:
        others = [each for each in self.pool[kind] if each["name"] != thing["name"]]
        self.pool[kind] = [*others, thing]

    def offers(self, name: str, *labels: str) -> None:
        """Puts a model into the pool, with images to try it, each of one grey."""
        self.serves(name, samples=len(labels), labels=[*labels])
        self.samples[name] = [*labels]

    def samples_at(self, path: str) -> tuple[int, Any]:
        """The list of a model's samples, or one of them."""
        _, _, _, model, _, *number = unquote(path).split("/")
        labels = self.samples[model]
        if number:
            return 200, image_of(int(number[0]))
        paths = [f"{path}/{place}" for place in range(len(labels))]
        return 200, [
            {"label": each, "path": path} for each, path in zip(labels, paths, strict=True)
        ]

    def refuse(self, code: int, error: str, **headers: str) -> None:
        """Lets it refuse every image."""
        self.code, self.reply, self.headers = code, {"error": error}, headers


class Handler(BaseHTTPRequestHandler):
    """Serves the files and plays a gateway, which is ``server.gateway``."""

    def log_message(self, *_: Any) -> None:
        """Is quiet."""

    def do_GET(self) -> None:
        gateway = self.server.gateway  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        if path == "/pool":
            is_let_in = not gateway.token or self._token() == gateway.token
            self._send(*((200, gateway.pool) if is_let_in else (401, {"error": "no token"})))
            return
        if path.startswith("/v1/models/"):
            is_let_in = not gateway.token or self._token() == gateway.token
            self._send(*gateway.samples_at(path) if is_let_in else (401, {"error": "no token"}))
            return
        if path == "/metrics":
            is_let_in = not gateway.token or self._token() == gateway.token
            self._send(200 if is_let_in else 401, b"dist_net_ready 1.0", "text/plain")
            return
        file = FILES / (path[1:] or "index.html")
        found = file.is_file()
        kind = TYPES.get(file.suffix, f"image/{file.suffix[1:]}".replace("svg", "svg+xml"))
        self._send(200 if found else 404, file.read_bytes() if found else b"", kind)

    def do_POST(self) -> None:
        gateway = self.server.gateway  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        gateway.requests.append((self.path, dict(self.headers), body))
        # Taken down here, so that a test may state the next one while this is on its way.
        code, reply, headers = gateway.code, deepcopy(gateway.reply), gateway.headers
        gateway.was_asked.set()
        gateway.may_answer.wait(30)
        self._send(code, reply, headers=headers)

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _send(
        self, code: int, content: Any, kind: str = "application/json", headers: Any = None
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        fields = {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in (fields | {"Content-Security-Policy": POLICY} | (headers or {})).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("no `chromium` here (package chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        browser.new_page().close()  # its last processes have started: no test has left them behind
        yield browser
        browser.close()


@pytest.fixture
def gateway() -> Iterator[StatedGateway]:
    gateway = StatedGateway()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.gateway = gateway  # type: ignore[attr-defined]
    server.daemon_threads = False  # so that closing waits for them
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    gateway.address = f"http://127.0.0.1:{server.server_port}/"
    yield gateway
    gateway.may_answer.set()
    server.shutdown()
    thread.join()
    server.server_close()


class Visit:
    """A page that was opened, and what it complained of."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requested: list[str] = []
        page.on("console", lambda message: self._heard(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requested.append(request.url))
        page.goto(address)

    def _heard(self, kind: str, text: str) -> None:
        # A refusal's own line in the console is the browser's, and is meant to be there.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.complaints.append(text)

    def sample(self, name: str) -> Any:
        """The button of a sample."""
        return self.page.get_by_role("button", name=name)


@pytest.fixture
def visit(browser: Any, gateway: StatedGateway) -> Iterator[Any]:
    """Opens the page, as often as a test wants, with the browser's options for a context."""
    visits: list[Visit] = []

    def open_page(**options: Any) -> Visit:
        visits.append(Visit(browser.new_context(**options).new_page(), gateway.address))
        return visits[-1]

    yield open_page
    for each in visits:
        each.page.context.close()
    assert [complaint for each in visits for complaint in each.complaints] == []
    outside = [url for each in visits for url in each.requested]
    assert [url for url in outside if not url.startswith((gateway.address, "blob:"))] == []
