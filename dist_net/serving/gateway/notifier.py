"""A webhook: posts events, such as answers of chosen classes, to a URL as JSON, in a thread.

    Gateway.observers ──answered──▶ a bounded queue ──thread──▶ HTTP POST, repeated with pauses

No caller ever waits for the receiver. When the queue is full, the oldest event is lost; each loss
is counted in the log. Redirects are not followed, and certificates are verified.
"""

import http.client
import json
import logging
import ssl
import threading
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from dist_net.errors import SettingError
from dist_net.images.labels import is_unknown, predictions_of
from dist_net.serving.pool.requests import InferenceRequest, Result

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"
MAX_WAITING = 1000
TRIES = 5
FIRST_PAUSE_S = 0.5  # doubled after each try
TIMEOUT_S = 5.0  # of each step of a request
LEAVE_S = 1.0


class Notifier(AbstractContextManager["Notifier"]):
    """Posts events to ``url``; ``classes``: of which answers, separated by commas, None for all.

    Raise SettingError for a URL that is not of HTTP or HTTPS.
    """

    def __init__(self, url: str, classes: str | None = None) -> None:
        try:
            parts = urlsplit(url)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            is_url = is_url and parts.username is None and url.isascii() and url.isprintable()
        except ValueError:
            is_url = False
        if not is_url:
            raise SettingError(f"--notify {url[:200]!r}: expected http://HOST or https://HOST/PATH")
        self._host, self._port = str(parts.hostname), parts.port
        self._path = (parts.path or "/").replace(" ", "%20")
        self._path += f"?{parts.query.replace(' ', '%20')}" if parts.query else ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._classes = None if classes is None else {each.strip() for each in classes.split(",")}
        self._waiting: deque[dict[str, Any]] = deque()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """End the thread; events that wait are lost."""
        self._stop.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(LEAVE_S)

    def post(self, event: dict[str, Any]) -> None:
        """Post an event, soon; return at once. Any thread may call it."""
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                self._waiting.popleft()
                self._lost += 1
            self._waiting.append(event)
            self._changed.notify()

    def answered(self, request: InferenceRequest, result: Result) -> None:
        """Post the answer to an image, if it is of one of the classes."""
        if not result.labels:
            return
        probabilities = np.frombuffer(result.payload, "<f4")
        best = predictions_of(probabilities, result.labels, np.array([probabilities.argmax()]))
        unknown = is_unknown(best, result.unknown_below)
        if self._classes is None or (UNKNOWN if unknown else best[0].label) in self._classes:
            event = {"event": "answer", "model": request.model, "version": result.version}
            self.post(event | asdict(best[0]) | {"unknown": unknown})

    def _run(self) -> None:
        reported = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stop.is_set())
                if self._stop.is_set():
                    return
                event = self._waiting.popleft()
            is_received = self._send(event)
            with self._changed:
                self._lost += not is_received
                lost = self._lost
            if lost != reported and not self._stop.is_set():
                logger.warning("notifications_lost host=%s lost=%d", self._host, lost)
            reported = lost

    def _send(self, event: dict[str, Any]) -> bool:
        """Return whether the receiver has acknowledged the event, after ``TRIES`` at most."""
        body = json.dumps(event).encode()
        for tried in range(TRIES):
            try:
                if 200 <= self._status(body) < 300:
                    return True
                reason = "refused"
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            logger.debug("not_notified host=%s tried=%d reason=%s", self._host, tried, reason)
            if tried + 1 < TRIES and self._stop.wait(FIRST_PAUSE_S * 2**tried):
                break
        return False

    def _status(self, body: bytes) -> int:
        """Post once, on a connection of its own; return the status code."""
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
            if self._tls is None
            else http.client.HTTPSConnection(
                self._host, self._port, timeout=TIMEOUT_S, context=self._tls
            )
        )
        try:
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request("POST", self._path, body, headers)
            return connection.getresponse().status
        finally:
            connection.close()
