"""`dist_net.Client` over real sockets, against a gateway that does what each test tells it."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from described import described, with_input
from dist_net import Client
from dist_net.errors import (
    BadInputError,
    BadRequestError,
    DTypeError,
    ImageError,
    InsecureAddressError,
    ModelNotServedError,
    NoAnswerError,
    PoolUnavailableError,
    ProtocolError,
    ReloadError,
    RequestCancelledError,
    RequestExpiredError,
    RequestFailedError,
    RequestTooLargeError,
    ShapeError,
)
from dist_net.serving.client.client import MAX_OPEN
from dist_net.serving.pool.description import (
    ServedModel,
    known,
    summary_to_json,
)
from dist_net.serving.pool.requests import Status
from dist_net.wire.messages import Message
from dist_net.wire.serving_messages import (
    MAX_REQUEST_BYTES,
    Answer,
    Ask,
    Cancel,
    Describe,
    Description,
    Ping,
    Pong,
    Reload,
    Reloaded,
    Unload,
)
from dist_net.wire.transport import ServerSocket
from naming import naming

LABELS = ("cat", "dog", "newt")
SUMS = described("sums", 7, labels=LABELS, takes_images=True)
OLD_SUMS = with_input(
    SUMS, version=6, datatype="UINT8", shape=(2, 2), labels=("hen", "owl", "rook")
)
BYTES = described("bytes", input_datatype="UINT8", input_shape=(2, 2), takes_images=True)
PRICES = described("prices", classes=3, labels=(), has_classes=False)
MODELS = [
    ServedModel("sums", SUMS, {6: OLD_SUMS, 7: SUMS}, True, ""),
    ServedModel("bytes", BYTES, {1: BYTES}, True, ""),
    ServedModel("prices", PRICES, {1: PRICES}, True, ""),
    ServedModel("absent", None, {}, False, "its file is missing"),
    ServedModel("gone", None, {}, False, "it was unloaded", is_unloaded=True),
]
DEADLINE_S = 60.0
Replies = Callable[[Message], list[Message]]


def outputs_of(request: Ask) -> bytes:
    """Three classes for each row of "sums": its sum, its first element, and 0."""
    if request.is_image:
        return np.array([0.25, 0.5, 0.25], "<f4").tobytes()
    is_bytes = request.model == "bytes" or request.version == "6"
    rows = np.frombuffer(request.payloads[0], "u1" if is_bytes else "<f4")
    rows = rows.reshape(-1, 4).astype("<f4")
    return np.stack([rows.sum(1), rows[:, 0], 0 * rows[:, 0]], 1).tobytes()


def answer_to(request: Ask) -> Answer:
    payloads = (outputs_of(request),)
    return Answer(request.request_id, Status.OK, "7", "", 0.0, 0.25, 0.5, payloads)


def refusal_of(request: Ask, status: Status) -> Answer:
    return Answer(request.request_id, status, "", "that is why", 2.5, 0.0, 0.0, ())


def never(_request: Message) -> list[Message]:
    return []


class Gateway:
    """Answers everything, unless ``replies`` is replaced; keeps what it heard."""

    models = MODELS

    def __init__(self, name: str = "first") -> None:
        self.name = name
        self.heard: list[Message] = []
        self.on_ask: Replies = lambda request: [answer_to(request)]
        self.address = ""
        self.is_closing = threading.Event()

    def replies(self, message: Message) -> list[Message]:
        match message:
            case Ask():
                return self.on_ask(message)
            case Describe(request_id, name):
                payloads = [json.dumps([each.name for each in self.models]).encode()]
                for model in self.models:
                    payloads += summary_to_json(model, 8) if model.name == name else []
                return [Description(request_id, tuple(payloads))]
            case Ping():
                return [Pong(self.name, True)]
            case Reload(request_id, "sums"):
                return [Reloaded(request_id, "8", "")]
            case Reload(request_id, _) | Unload(request_id, _):
                return [Reloaded(request_id, "", "its file is missing")]
        return []

    def serve(self, listen: str, is_open: threading.Event) -> None:
        with ServerSocket([listen], high_water_mark=4 * MAX_OPEN) as socket:
            self.address = socket.contact_addresses[0]
            is_open.set()
            while not self.is_closing.is_set():
                received = socket.receive(0.01)
                if received is not None:
                    node, message = received
                    self.heard.append(message)
                    for reply in self.replies(message):
                        socket.send(node, reply)

    def requests(self) -> list[Ask]:
        return [message for message in self.heard if isinstance(message, Ask)]


@contextmanager
def serving(gateway: Gateway, listen: str = "tcp://127.0.0.1:0") -> Iterator[Gateway]:
    is_open = threading.Event()
    thread = threading.Thread(target=gateway.serve, args=(listen, is_open))
    thread.start()
    try:
        assert is_open.wait(DEADLINE_S)
        yield gateway
    finally:
        gateway.is_closing.set()
        thread.join()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with serving(Gateway()) as gateway:
        yield gateway


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    with Client(gateway.address, timeout_s=DEADLINE_S) as client:
        yield client


def test_rows_are_answered_as_rows_and_one_row_as_one(client: Client) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    outputs = client.infer("sums", rows)
    np.testing.assert_array_equal(outputs.probabilities, [[6, 0, 0], [22, 4, 0]])
    assert (outputs.version, outputs.queue_s, outputs.compute_s) == (7, 0.25, 0.5)
    np.testing.assert_array_equal(client.infer("sums", rows[1]).probabilities, [22, 4, 0])


def test_predictions_have_the_types_of_a_loaded_models(client: Client) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    for predict in client.predict, client.probabilities:
        np.testing.assert_array_equal(predict("sums", rows), [[6, 0, 0], [22, 4, 0]])
    np.testing.assert_array_equal(client.predict("prices", rows)[:, 0], [6, 22])
    with pytest.raises(BadRequestError):
        client.probabilities("prices", rows)


def test_answers_of_a_later_version_have_its_classes_and_labels(
    client: Client, gateway: Gateway
) -> None:
    rows = np.zeros((8, 4), np.float32)
    assert client.infer("sums", rows).labels == LABELS
    outputs = np.arange(40, dtype="<f4")
    payloads = outputs.tobytes(), b'["red", "green", "blue", "black", "white"]'
    gateway.on_ask = lambda request: [answer_to(request)._replace(version="8", payloads=payloads)]
    described = sum(isinstance(each, Describe) for each in gateway.heard)
    for asks_again in (0, 1):
        result = client.infer("sums", rows)
        np.testing.assert_array_equal(result.probabilities, outputs.reshape(8, 5))
        assert (result.version, result.labels[3]) == (8, "black")
        assert result.likeliest(1, row=2)[0].label == "white"
        described_now = sum(isinstance(each, Describe) for each in gateway.heard)
        assert described_now == described + asks_again
    image = client.classify("sums", b"image", top=1)
    assert len(image) == 1


def test_a_row_that_no_class_of_the_version_reaches_is_unknown(
    client: Client, gateway: Gateway
) -> None:
    rows = np.zeros((2, 4), np.float32)
    assert not client.infer("sums", rows).is_unknown()  # it has no threshold
    brought = np.array([[0.5, 0.2, 0.3], [0.2, 0.2, 0.6]], "<f4").tobytes(), b'["a", "b", "c"]'
    payloads = *brought, b"0.6"
    gateway.on_ask = lambda request: [answer_to(request)._replace(payloads=payloads)]
    outputs = client.infer("sums", rows)
    assert outputs.unknown_below == 0.6
    assert [outputs.is_unknown(row) for row in (0, 1)] == [True, False]
    gateway.on_ask = lambda request: [answer_to(request)._replace(payloads=brought)]
    assert client.infer("sums", rows).unknown_below == 0


def test_the_threshold_of_a_version_that_the_client_knows_is_used(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(SUMS, unknown_below=0.75)
    versions = {6: OLD_SUMS, 7: strict}
    told = [ServedModel("sums", strict, versions, True, "")]
    monkeypatch.setattr(Gateway, "models", told)
    assert client.submit_image("sums", b"image").result().is_unknown()
    assert not client.submit_image("sums", b"image", version=6).result().is_unknown()


def test_a_model_is_asked_for_again_when_an_input_does_not_suit_it_any_more(
    client: Client, gateway: Gateway
) -> None:
    rows = np.zeros((2, 4), np.float32)
    client.infer("sums", rows)
    gateway.on_ask = lambda request: [refusal_of(request, Status.BAD_INPUT)]
    described = sum(isinstance(each, Describe) for each in gateway.heard)
    for _ in range(2):
        with pytest.raises(BadRequestError):
            client.infer("sums", rows)
    assert sum(isinstance(each, Describe) for each in gateway.heard) == described + 1


@pytest.mark.parametrize(
    "brought", [[b"no JSON"], [b"7"], [b"\xff"], [b'["cat"]', b"high"], [b'["cat"]', b"[]"]]
)
def test_labels_and_thresholds_that_are_none_are_an_error_of_ours(
    client: Client, gateway: Gateway, brought: list[bytes]
) -> None:
    gateway.on_ask = lambda request: [
        answer_to(request)._replace(payloads=(outputs_of(request), *brought))
    ]
    with pytest.raises(ProtocolError, match=naming("Answer", "version='7'")):
        client.infer("sums", np.zeros((2, 4), np.float32))


def test_a_named_version_is_asked_and_named_as_that_version_is(
    client: Client, gateway: Gateway
) -> None:
    pixels = np.full((1, 2, 2), 50, np.uint8)
    outputs = client.infer("sums", pixels, version=6)
    (request,) = gateway.requests()
    said = known(MODELS[0].versions[6])
    assert (request.version, request.payloads) == ("6", (pixels.tobytes(), said))
    assert outputs.labels == ("hen", "owl", "rook")
    assert outputs.likeliest(1)[0].label == "hen"
    assert client.submit_image("sums", b"image", version=6).result().labels[0] == "hen"
    with pytest.raises(ShapeError, match=naming((1, 4), "'sums'", (2, 2))):
        client.infer("sums", np.zeros((1, 4), np.float32), version=6)
    with pytest.raises(DTypeError, match=naming("float32", "'sums'", "uint8")):
        client.infer("sums", np.zeros((1, 2, 2), np.float32), version=6)


def test_a_version_that_is_not_served_is_named_with_those_that_are(
    client: Client, gateway: Gateway
) -> None:
    client.models()
    described_before = sum(isinstance(each, Describe) for each in gateway.heard)
    with pytest.raises(ModelNotServedError, match=naming("'sums'", "version 5", "6, 7")):
        client.infer("sums", np.zeros((1, 4), np.float32), version=5)
    described_now = sum(isinstance(each, Describe) for each in gateway.heard)
    assert described_now == described_before + 1  # it may have come since


def test_inputs_are_converted_within_their_kind(client: Client) -> None:
    columns = np.arange(8.0).reshape(4, 2).T  # neither float32 nor contiguous
    np.testing.assert_array_equal(
        client.infer("sums", columns).probabilities, [[12, 0, 0], [16, 1, 0]]
    )
    pixels = np.full((1, 2, 2), 200, np.uint8)
    assert client.infer("bytes", pixels).probabilities[0, 0] == 800
    with pytest.raises(DTypeError, match=naming("float32", "'bytes'", "uint8")):
        client.infer("bytes", np.zeros((1, 2, 2), np.float32))


@pytest.mark.parametrize("shape", [(5,), (2, 5), (1, 1, 4), ()])
def test_inputs_of_another_shape_are_refused_here(client: Client, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=naming("'sums'", (4,))):
        client.submit("sums", np.zeros(shape, np.float32))


def test_a_request_that_the_gateway_would_drop_is_refused_here(client: Client) -> None:
    rows = np.zeros((MAX_REQUEST_BYTES // 16, 4), np.float32)
    with pytest.raises(RequestTooLargeError) as refused:
        client.submit("sums", np.concatenate([rows, rows[:1]]))
    assert f"{MAX_REQUEST_BYTES:,}" in str(refused.value)
    with pytest.raises(RequestTooLargeError):
        client.classify("sums", bytes(MAX_REQUEST_BYTES + 1))
    assert client.infer("sums", rows[:1]).probabilities[0, 0] == 0


def test_the_inputs_may_be_overwritten_at_once(client: Client) -> None:
    row = np.ones(4, np.float32)
    pending = client.submit("sums", row)
    row[:] = 5
    assert pending.result().probabilities[0] == 4


def test_many_requests_are_on_their_way_at_once_and_answered_in_any_order(
    client: Client, gateway: Gateway
) -> None:
    kept: list[Message] = []

    def reverse(request: Message) -> list[Message]:
        assert isinstance(request, Ask)
        kept.append(answer_to(request))
        if len(kept) % MAX_OPEN:
            return []
        answers, kept[:] = kept[::-1], []
        return answers

    gateway.on_ask = reverse
    count = 4 * MAX_OPEN
    pending = [client.submit("sums", np.full(4, i, np.float32)) for i in range(count)]
    assert [each.result().probabilities[1] for each in pending] == list(range(count))


def test_no_more_requests_are_open_than_a_client_may_have(client: Client, gateway: Gateway) -> None:
    gateway.on_ask = never
    for _ in range(MAX_OPEN + 1):
        client.submit("sums", np.zeros(4, np.float32), timeout_s=0.2)
    client.models()
    last = gateway.requests()[-1]
    given_up = [message for message in gateway.heard if isinstance(message, Cancel)]
    assert len(gateway.requests()) == MAX_OPEN + 1
    assert gateway.heard.index(given_up[0]) < gateway.heard.index(last)


def test_a_version_and_a_time_travel_with_a_request(client: Client, gateway: Gateway) -> None:
    client.infer("sums", np.zeros((2, 2), np.uint8), version=6, timeout_s=3.0)
    client.infer("sums", np.zeros(4, np.float32))
    assert [(each.version, each.timeout_s) for each in gateway.requests()] == [
        ("6", 3.0),
        ("", DEADLINE_S),
    ]


def test_models_are_told(client: Client) -> None:
    sums, _, prices, absent, gone = client.models()
    assert (sums.has_classes, prices.has_classes, prices.max_batch_size) == (True, False, 8)
    assert (sums.name, sums.versions, sums.input_shape, sums.labels) == (
        "sums",
        (6, 7),
        (4,),
        LABELS,
    )
    assert (absent.is_ready, absent.reason, absent.classes) == (False, "its file is missing", 0)
    assert (absent.is_unloaded, gone.is_unloaded) == (False, True)


def test_a_image_is_sent_as_it_is_and_pixels_as_a_png(
    client: Client, gateway: Gateway, tmp_path: Path
) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(b"what a worker decodes")
    assert [each.label for each in client.classify("sums", path, top=2)] == ["dog", "cat"]
    client.classify("sums", b"likewise")
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    (likeliest, *_) = client.classify("bytes", pixels)
    assert (likeliest.label, likeliest.probability) == ("1", 0.5)  # a class without a label
    of_path, of_bytes, of_pixels = (each.payloads[0] for each in gateway.requests())
    assert (of_path, of_bytes) == (b"what a worker decodes", b"likewise")
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(of_pixels))), pixels)


@pytest.mark.parametrize("image", ["nowhere.jpg", np.zeros((2, 2, 7), np.uint8), None])
def test_what_is_no_image_is_refused_here(client: Client, image: object) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.jpg|\(H, W, 3\) uint8"):
        client.classify("sums", image)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Status.BAD_INPUT, BadRequestError),
        (Status.NOT_FOUND, ModelNotServedError),
        (Status.UNAVAILABLE, PoolUnavailableError),
        (Status.EXPIRED, RequestExpiredError),
        (Status.FAILED, RequestFailedError),
    ],
)
def test_each_way_to_fail_is_an_error_of_its_own(
    client: Client, gateway: Gateway, status: Status, error: type[Exception]
) -> None:
    gateway.on_ask = lambda request: [refusal_of(request, status)]
    with pytest.raises(error, match=r"^that is why$") as caught:
        client.infer("sums", np.zeros(4, np.float32))
    if isinstance(caught.value, PoolUnavailableError):
        assert caught.value.retry_after_s == 2.5


def test_a_model_that_is_not_there_is_named(client: Client) -> None:
    with pytest.raises(ModelNotServedError, match=naming("'cats'", "sums", "bytes", "absent")):
        client.infer("cats", np.zeros(4))
    with pytest.raises(ModelNotServedError, match=naming("'sum'", "sums")):
        client.infer("sum", np.zeros(4))
    with pytest.raises(PoolUnavailableError, match=naming("'absent'", "its file is missing")):
        client.classify("absent", b"image")


def test_what_does_not_come_in_time_is_cancelled(client: Client, gateway: Gateway) -> None:
    gateway.on_ask = never
    client.models()
    with pytest.raises(RequestExpiredError, match=naming("0.1 s", "gateway")):
        client.infer("sums", np.zeros(4, np.float32), timeout_s=0.1)
    client.models()  # the cancellation came before this
    assert Cancel(gateway.requests()[0].request_id) in gateway.heard


def test_a_cancelled_question_has_no_result(client: Client, gateway: Gateway) -> None:
    gateway.on_ask = never
    pending = client.submit("sums", np.zeros(4, np.float32))
    pending.cancel()
    with pytest.raises(RequestCancelledError):
        pending.result()
    client.models()
    assert Cancel(gateway.requests()[0].request_id) in gateway.heard


def test_threads_take_turns_and_get_their_own_answers(client: Client) -> None:
    def asked(thread: int) -> bool:
        rows = np.full((100, 4), thread, np.float32)
        return all((client.infer("sums", row).probabilities[1] == thread) for row in rows)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(asked, range(4)))


def test_a_thread_that_waits_delays_no_other_and_another_may_cancel_its_request(
    client: Client, gateway: Gateway
) -> None:
    silent = np.full(4, -1, np.float32)

    def answer_others(request: Message) -> list[Message]:
        assert isinstance(request, Ask)
        return [] if request.payloads[0] == silent.tobytes() else [answer_to(request)]

    gateway.on_ask = answer_others
    pending = client.submit("sums", silent)
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(pending.result)
        for timeout_s in (DEADLINE_S / 2, 0.1):
            row = silent if timeout_s == 0.1 else np.ones(4, np.float32)
            other = threads.submit(client.infer, "sums", row, timeout_s=timeout_s)
            if timeout_s == 0.1:
                with pytest.raises(RequestExpiredError):
                    other.result()
            else:
                assert other.result().probabilities[0] == 4
            assert not waiting.done()
        pending.cancel()
        with pytest.raises(RequestCancelledError):
            waiting.result()


def test_labels_of_any_number_and_of_many_models_are_described(
    client: Client, gateway: Gateway
) -> None:
    """All of them together would not fit into a header."""
    labels = tuple(f"a label of ImageNet-21k, number {index:05}" for index in range(21_843))
    many = described("sums", 7, labels=labels, takes_images=True)
    gateway.models = [
        ServedModel(name, one, {7: one}, True, "")
        for name, one in (
            (f"model{index}", replace(many, name=f"model{index}")) for index in range(3)
        )
    ]
    assert [each.labels == labels for each in client.models()] == [True] * 3
    assert client.submit_image("model2", b"image").result().labels == labels


def test_a_thread_whose_client_is_closed_gets_an_error(gateway: Gateway) -> None:
    client = Client(gateway.address, timeout_s=DEADLINE_S)
    has_asked = threading.Event()

    def ask_until_closed() -> None:
        while True:
            client.infer("sums", np.zeros(4, np.float32))
            has_asked.set()

    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask_until_closed)
        assert has_asked.wait(DEADLINE_S)
        client.close()
        with pytest.raises((NoAnswerError, RequestCancelledError)):
            asking.result()


def test_closing_cancels_what_is_open(gateway: Gateway) -> None:
    gateway.on_ask = never
    with Client(gateway.address, timeout_s=DEADLINE_S) as client:
        client.submit("sums", np.zeros(4, np.float32))
    with Client(gateway.address, timeout_s=DEADLINE_S) as other:
        while not any(isinstance(message, Cancel) for message in gateway.heard):
            other.models()


def test_a_gateway_that_is_started_anew_is_asked_again(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/gateway"
    with Client(address, timeout_s=DEADLINE_S) as client:
        with serving(Gateway("first"), address) as first:
            first.on_ask = never
            pending = client.submit("sums", np.ones(4, np.float32))
            while not first.requests():
                client.models()
        with serving(Gateway("second"), address) as second:
            assert pending.result().probabilities[0] == 4
            assert second.requests()[0].timeout_s < DEADLINE_S


def test_nobody_there_is_an_error_in_time() -> None:
    with (
        Client("tcp://127.0.0.1:9", timeout_s=0.1) as client,
        pytest.raises(NoAnswerError, match=naming("127.0.0.1:9", "0.1 s")),
    ):
        client.models()


def test_an_answer_that_does_not_fit_is_one(client: Client, gateway: Gateway) -> None:
    gateway.on_ask = lambda request: [answer_to(request)._replace(payloads=(b"12345",))]
    with pytest.raises(ProtocolError, match=naming("Answer", "version='7'")):
        client.infer("sums", np.zeros(4, np.float32))


def test_models_are_reloaded_and_unloaded(client: Client) -> None:
    assert client.reload("sums") == 8
    with pytest.raises(ReloadError, match="its file is missing"):
        client.reload("absent")
    with pytest.raises(ReloadError, match="its file is missing"):
        client.unload("absent")


def test_more_rows_than_a_batch_are_split_and_answered_by_one_version(
    client: Client, gateway: Gateway
) -> None:
    rows = np.arange(4 * 300, dtype=np.float32).reshape(-1, 4)
    outputs = client.infer("sums", rows)
    np.testing.assert_array_equal(outputs.probabilities[:, 0], rows.sum(1))
    asked = gateway.requests()
    assert [len(each.payloads[0]) // 16 for each in asked] == [8] * 37 + [4]
    assert {each.version for each in asked} == {"7"}
    assert (outputs.version, outputs.queue_s, outputs.compute_s) == (7, 0.25, 38 * 0.5)
    assert client.infer("sums", rows[:8]).version == 7
    assert gateway.requests()[-1].version == ""


def test_split_rows_are_for_the_version_that_is_served_now(
    client: Client, gateway: Gateway
) -> None:
    rows = np.ones((20, 4), np.float32)
    client.infer("sums", rows[:1])  # the client knows version 7
    newer = replace(SUMS, version=8)
    gateway.models = [ServedModel("sums", newer, {8: newer}, True, "")]
    assert client.infer("sums", rows).probabilities.shape == (20, 3)
    assert {each.version for each in gateway.requests()[1:]} == {"8"}
    gateway.on_ask = lambda request: [refusal_of(request, Status.NOT_FOUND)]
    with pytest.raises(ModelNotServedError):
        client.infer("sums", rows)


def test_the_numbers_of_a_regression_are_values_not_probabilities(client: Client) -> None:
    outputs = client.infer("prices", np.ones((2, 4), np.float32))
    np.testing.assert_array_equal(outputs.values[:, 0], [4, 4])
    for read in (lambda: outputs.probabilities, outputs.likeliest, outputs.is_unknown):
        with pytest.raises(BadRequestError, match=r"Outputs\.values"):
            read()


def test_an_unloaded_model_is_not_served_and_a_model_without_a_version_is_unavailable(
    client: Client,
) -> None:
    with pytest.raises(ModelNotServedError, match="it was unloaded"):
        client.infer("gone", np.zeros(4, np.float32))
    with pytest.raises(PoolUnavailableError, match="its file is missing"):
        client.infer("absent", np.zeros(4, np.float32))


def test_beyond_this_host_keys_are_needed() -> None:
    with pytest.raises(InsecureAddressError):
        Client("tcp://192.0.2.1:5600")


def test_errors_of_what_was_asked_are_bad_input() -> None:
    assert issubclass(BadRequestError, BadInputError)
    assert issubclass(ModelNotServedError, BadInputError)
