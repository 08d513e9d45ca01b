"""What a request will cost, learned for each model by the size of a request, before it runs."""

from dist_net.images.stated_size import stated_pixels
from dist_net.serving.pool.requests import InferenceRequest

SHORT_BATCH_S = 0.005
"""A worker receives its next batch before it finishes a batch that is shorter than this: waiting
for the message would cost more than the computation."""

MIN_COST_S = 1e-4
ALIKE_FACTOR = 2
MAX_RISE = 4
"""A measurement counts as at most this multiple of what was expected: it may be an accident."""
RISES, FALLS = 0.5, 0.1
"""The weights of a measurement above and below the expected time, which is thus rather too long."""


def size_of(request: InferenceRequest) -> int:
    """Return the bytes of a request, and the pixels of an image: its decoder reads both."""
    payload = request.payload
    return len(payload) + (stated_pixels(payload) if request.is_image else 0)


class Costs:
    """The seconds that a request of one model takes, for each power of two of its size.

    Sizes never seen take as long as in ``others``; else as the nearest that was seen, or in
    proportion if they are larger.
    """

    def __init__(self, others: "Costs | None" = None) -> None:
        self._others = others
        self._seconds: dict[tuple[bool, int], float] = {}

    def of(self, request: InferenceRequest) -> float:
        """Return the seconds that a request will take; 0 if none like it has been measured."""
        is_image, bits = _class_of(request)
        seconds = self._seconds.get((is_image, bits))
        if seconds is None and self._others is not None:
            return self._others.of(request)
        if seconds is None:
            known = [each for kind, each in self._seconds if kind == is_image]
            nearest = min(known, key=lambda each: abs(each - bits), default=bits)
            seconds = self._seconds.get((is_image, nearest), 0.0) * 2 ** max(0, bits - nearest)
        return seconds

    def learn(self, request: InferenceRequest, took_s: float) -> None:
        """Record the time that a request took."""
        measured_s, kind = max(took_s, MIN_COST_S), _class_of(request)
        usual_s = self._seconds.setdefault(kind, measured_s)
        rise_s = min(measured_s, MAX_RISE * usual_s) - usual_s
        self._seconds[kind] += (RISES if rise_s > 0 else FALLS) * rise_s


def _class_of(request: InferenceRequest) -> tuple[bool, int]:
    return request.is_image, request.size.bit_length()


def are_alike(one_s: float, other_s: float) -> bool:
    """Return whether rows of these costs may share a batch: neither waits for the other."""
    return max(one_s, other_s) <= max(SHORT_BATCH_S, ALIKE_FACTOR * min(one_s, other_s))
