"""What remains of a request: a line of the access log, and a span of OpenTelemetry, if installed.

The trace continues the client's (``traceparent``, W3C Trace Context). Without an SDK that the
process configures, the API of OpenTelemetry does nothing.
"""

import logging
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from random import getrandbits
from typing import Any

_tracer: Any = None
with suppress(ImportError):  # the extra ``tracing``
    from opentelemetry import propagate, trace

    _tracer = trace.get_tracer("dist_net")

logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)  # ``is_logged`` decides, also where a command prints warnings only

LOGGED = ("x-request-id", "traceparent", "tracestate")
_SENT_ID = re.compile("[A-Za-z0-9._-]{1,64}")
_PARENT = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class RequestLog:
    """A request from its first header to its answer: ``request_id`` is the client's or a new one.

    ``headers``: those in ``LOGGED``, at least.
    """

    def __init__(self, name: str, headers: Mapping[str, str]) -> None:
        sent_id = headers.get("x-request-id", "")
        is_valid = _SENT_ID.fullmatch(sent_id)
        self.request_id = sent_id if is_valid else f"{getrandbits(64):016x}"
        self.code = 0
        self._name, self._began_s = name, time.monotonic()
        parent = _PARENT.match(headers.get("traceparent", ""))
        self._trace_id = parent.group(1) if parent else ""
        self._span: Any = None
        if _tracer is not None:
            kind, context = trace.SpanKind.SERVER, propagate.extract(headers)
            self._span = _tracer.start_span(name, context, kind)
            if (own := self._span.get_span_context()).is_valid:
                self._trace_id = f"{own.trace_id:032x}"

    def end(self, client: str, *, is_logged: bool) -> None:
        """End the span; log the line if ``is_logged``."""
        if self._span is not None:
            self._span.set_attribute("client", client)
            self._span.set_attribute("code", self.code)
            if self.code >= 500:
                self._span.set_status(trace.StatusCode.ERROR)
            self._span.end()
        if is_logged:
            what = "request id=%s client=%r code=%s seconds=%.4f request=%r trace=%s"
            took_s = time.monotonic() - self._began_s
            ids = self.request_id, self._trace_id
            logger.info(what, ids[0], client, self.code, took_s, self._name, ids[1])
