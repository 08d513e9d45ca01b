"""The application over HTTP in front of a fake gateway: every address, every error; no sockets."""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from described import described, with_input
from dist_net.errors import (
    AddressError,
    BadRequestError,
    InsecureAddressError,
    RequestTooLargeError,
    SettingError,
)
from dist_net.nets.tensor_specs import TYPE_CODES
from dist_net.serving.gateway.client_ledger import ClientLedger, Quota
from dist_net.serving.http import classify, exchange, request_log
from dist_net.serving.http.application import application
from dist_net.serving.http.classify import form_images
from dist_net.serving.http.open_inference import bytes_of_elements
from dist_net.serving.http.page_files import PAGE, page_routes
from dist_net.serving.http.replies import CODE_OF_ERROR, CODE_OF_STATUS, Refusals
from dist_net.serving.http.settings import HttpSettings, TokenFile
from dist_net.serving.pool.description import EncodedImage, ServedModel
from dist_net.serving.pool.requests import Result, Status
from dist_net.serving.pool.statistics import NO_VERSION, ModelStatistics
from fake_service import ANIMALS, BAD_IMAGE, DIGITS, FakeService, probabilities, served
from naming import naming
from slices import finished

TOKEN = "the-token-that-is-long"
CLIENT_TOKEN = "the-token-of-a-client"
ROW = [0.5, -1.25, 3.0, 0.001]
INFER = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": ROW}]}
JPEG = b"\xff\xd8\xff and so on"

Ask = Callable[..., httpx.Response]


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    """The file of an operator's and of a client's token."""
    path = tmp_path / "tokens"
    path.write_text(f"{TOKEN}\n\n  client {CLIENT_TOKEN}\n")
    return TokenFile(path)


class FixedClock:
    """A clock that stands."""

    def now(self) -> float:
        return 100.0


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "samples").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "page.js").write_text("1")
    (tmp_path / "samples" / "cat.png").write_bytes(b"png")
    return tmp_path


def asking(
    service: FakeService, page: Path, ledger: ClientLedger | None = None, **settings: Any
) -> Ask:
    """A function that sends one request to the application and gives the response."""
    app = application(service, HttpSettings(**settings), FixedClock(), page=page, ledger=ledger)

    def ask(method: str, path: str, **keywords: Any) -> httpx.Response:
        async def one() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                return await http.request(method, path, **keywords)

        return asyncio.run(one())

    return ask


@pytest.fixture
def ask(service: FakeService, page: Path) -> Ask:
    return asking(service, page)


def error_of(response: httpx.Response) -> str:
    """Every error is an object with a key of that name."""
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert isinstance(error, str)
    assert error
    return error


# Inference


@pytest.mark.parametrize("given", ["a", ""])
def test_a_model_is_asked(given: str, ask: Ask, service: FakeService) -> None:
    response = ask("POST", "/v2/models/digits/infer", json=INFER | {"id": given})
    assert response.status_code == 200
    answer = response.json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "3", given)
    (request,) = service.requests
    data = np.array(answer["outputs"][0]["data"], "f4")
    assert np.array_equal(data, probabilities(request)[0])


OLD_ANIMALS = described(
    "animals", 5, input_shape=(5,), classes=4, labels=("a", "b", "c"), takes_images=True
)


@pytest.fixture
def with_older(service: FakeService) -> None:
    """An older version is served, too, which takes and names something else."""
    versions = {5: OLD_ANIMALS, 7: ANIMALS}
    service.served["animals"] = ServedModel("animals", ANIMALS, versions, True, "")


@pytest.mark.usefixtures("with_older")
def test_a_named_version_is_described_and_checked_by_its_own_shape(
    ask: Ask, service: FakeService
) -> None:
    older = "/v2/models/animals/versions/5"
    metadata, newest = ask("GET", older).json(), ask("GET", "/v2/models/animals").json()
    assert metadata["inputs"][0] == {"name": "input", "datatype": "FP32", "shape": [-1, 5]}
    assert metadata["outputs"][0]["shape"] == [-1, 4]
    assert newest["inputs"][0]["shape"] == [-1, 2, 2, 3]
    assert ask("GET", f"{older}/config").json()["input"][0]["dims"] == [5]
    tensor = {"name": "input", "shape": [1, 5], "datatype": "FP32", "data": [0, 1, 2, 3, 4]}
    service.scripted = [Result(Status.OK, 5, np.ones(4, "<f4").tobytes())]
    assert ask("POST", f"{older}/infer", json={"inputs": [tensor]}).status_code == 200
    assert (service.requests[0].version, len(service.requests[0].payload)) == (5, 20)
    assert ask("POST", "/v2/models/animals/infer", json={"inputs": [tensor]}).status_code == 400
    for path in ("/v2/models/animals/versions/9", "/v2/models/animals/versions/9/config"):
        assert "no version 9" in error_of(ask("GET", path))


def test_a_binary_answer_says_where_its_json_ends(ask: Ask) -> None:
    request = INFER | {"parameters": {"binary_data_output": True}}
    response = ask("POST", "/v2/models/digits/infer", json=request)
    length = int(response.headers["inference-header-content-length"])
    assert response.headers["content-type"] == "application/octet-stream"
    assert json.loads(response.content[:length])["outputs"][0]["parameters"]
    assert len(response.content) == length + 12


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_a_compressed_body_is_refused(ask: Ask, encoding: str) -> None:
    """Decompressing takes time and memory beyond proportion to what a client has to send."""
    for path in ("/v2/models/digits/infer", "/v1/models/animals/classify", "/v2/repository/index"):
        headers = {"content-encoding": encoding}
        response = ask("POST", path, content=b"x", headers=headers)
        assert (response.status_code, encoding in error_of(response)) == (415, True)
    headers = {"content-encoding": "identity"}
    assert ask("POST", "/v2/models/digits/infer", json=INFER, headers=headers).is_success
    assert ask("GET", "/v1/models/labels", headers=headers).status_code == 404  # no such model


@pytest.mark.parametrize("path", ["labels", "report"])
def test_a_client_may_not_teach(
    service: FakeService, page: Path, tokens: TokenFile, path: str
) -> None:
    ask = asking(service, page, tokens=tokens)
    path = f"/v1/models/digits/{path}"
    refused = ask("GET", path, headers={"authorization": f"Bearer {CLIENT_TOKEN}"})
    assert (refused.status_code, "teacher" in error_of(refused)) == (403, True)
    refused = ask("GET", path, headers={"authorization": f"Bearer {TOKEN}"})
    assert (refused.status_code, "--teach" in error_of(refused)) == (404, True)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Status.BAD_INPUT, 400),
        (Status.NOT_FOUND, 404),
        (Status.UNAVAILABLE, 503),
        (Status.EXPIRED, 504),
        (Status.FAILED, 500),
    ],
)
def test_an_result_has_its_status_code(
    ask: Ask, service: FakeService, status: Status, code: int
) -> None:
    service.scripted = [Result(status, reason="because", retry_after_s=1.2)]
    response = ask("POST", "/v2/models/digits/infer", json=INFER)
    assert response.status_code == code
    assert error_of(response) == "because"
    assert response.headers.get("retry-after") == ("2" if code == 503 else None)
    assert response.json()["retry_after_s"] == 1.2


def test_a_refusal_without_a_time_says_a_second(ask: Ask, service: FakeService) -> None:
    service.scripted = [Result(Status.UNAVAILABLE, reason="draining")]
    assert ask("POST", "/v2/models/digits/infer", json=INFER).headers["retry-after"] == "1"


def test_it_is_said_which_image_was_bad(ask: Ask) -> None:
    raw = bytes_of_elements([JPEG, BAD_IMAGE])
    tensor = {"name": "input", "shape": [2], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": len(raw)}
    text = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    response = ask("POST", "/v2/models/animals/infer", content=text + raw, headers=headers)
    assert response.status_code == 400
    assert error_of(response).startswith("image 2 of 2: ")


@pytest.mark.parametrize(
    ("method", "path", "keywords", "code"),
    [
        ("POST", "/v2/models/none/infer", {"json": INFER}, 404),
        ("POST", "/v2/models/digits/versions/x/infer", {"json": INFER}, 404),
        ("POST", "/v2/models/digits/versions/%EF%BC%91/infer", {"json": INFER}, 404),
        ("POST", "/v2/models/a/b/infer", {"json": INFER}, 404),
        ("GET", "/v2/models/digits/infer", {}, 405),
        ("POST", "/v2/models/digits/infer", {"content": b"{"}, 400),
        ("POST", "/v2/models/digits/infer", {"content": b""}, 400),
        ("POST", "/v2/models/digits/infer", {"content": bytes(2**24 + 1)}, 413),
        (
            "POST",
            "/v2/models/digits/infer",
            {"content": b"x", "headers": {"inference-header-content-length": "-1"}},
            400,
        ),
        ("GET", "/nothing", {}, 404),
        ("GET", "/v2/models/none", {}, 404),
        ("GET", "/v2/models/none/ready", {}, 404),
        ("GET", "/v2/models/digits/versions/9", {}, 404),
        ("GET", "/v2/models/digits/versions/9/stats", {}, 404),
        ("DELETE", "/v2/models/digits", {}, 405),
        ("POST", "/v2/repository/models/none/load", {}, 404),
        ("POST", "/v2/repository/models/none/unload", {}, 404),
        ("POST", "/v2/repository/index", {"content": b"]"}, 400),
        ("POST", "/v2/repository/index", {"content": b"[]"}, 400),
        ("POST", "/v2/repository/index", {"content": b"null"}, 400),
        ("POST", "/v2/repository/models/digits/load", {"content": b"null"}, 400),
        (
            "POST",
            "/v2/repository/models/digits/load",
            {"json": {"parameters": {"config": "{}"}}},
            501,
        ),
        ("GET", "/v2/systemsharedmemory/status", {}, 404),
        ("POST", "/v1/models/digits/classify", {"content": JPEG}, 400),
        ("POST", "/v1/models/none/classify", {"content": JPEG}, 404),
        ("POST", "/v1/models/animals/classify", {"content": b""}, 400),
        ("POST", "/v1/models/animals/classify?top=0", {"content": JPEG}, 400),
        ("POST", "/v1/models/animals/classify?top=x", {"content": JPEG}, 400),
        ("POST", "/v1/classify", {"content": JPEG}, 400),
        (
            "POST",
            "/v1/models/animals/classify",
            {"content": b"--x\r\n\r\n", "headers": {"content-type": "multipart/form-data"}},
            400,
        ),
        (
            "POST",
            "/v1/models/animals/classify",
            {
                "content": b'--x\r\ncontent-disposition: f; name=f; filename="a"\r\n\r\ncut short',
                "headers": {"content-type": "multipart/form-data; boundary=x"},
            },
            400,
        ),
    ],
)
def test_what_cannot_be_answered_is_an_error(
    ask: Ask, method: str, path: str, keywords: dict[str, Any], code: int
) -> None:
    response = ask(method, path, **keywords)
    assert response.status_code == code
    error_of(response)


@pytest.mark.parametrize("path", ["/v2/models/digits/infer", "/pool", "/v2/models/digits/ready"])
def test_a_fault_is_an_error_too(ask: Ask, service: FakeService, path: str) -> None:
    service.models = service.description = None  # type: ignore[method-assign,assignment]
    response = ask("POST" if path.endswith("infer") else "GET", path, json=INFER)
    assert response.status_code == 500
    assert "log" in error_of(response)


# What is told of models


def test_health(ask: Ask, service: FakeService) -> None:
    assert ask("GET", "/v2/health/live").is_success
    assert ask("GET", "/v2/health/ready").is_success
    service.is_ready = False
    assert ask("GET", "/v2/health/live").is_success
    response = ask("GET", "/v2/health/ready")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


def test_a_model_that_is_not_there_is_refused_with_the_name_that_was_meant(ask: Ask) -> None:
    said = error_of(ask("POST", "/v2/models/digit/infer", json=INFER))
    assert "'digit'" in said
    assert said.endswith("; did you mean digits?")
    said = error_of(ask("GET", "/v2/models/cows"))
    assert "'cows'" in said
    assert said.endswith("; expected one of digits, animals")


def test_a_model_without_a_version_is_not_ready(ask: Ask, service: FakeService) -> None:
    assert ask("GET", "/v2/models/digits/ready").is_success
    service.served["digits"] = ServedModel("digits", None, {}, False, "its file is damaged")
    for path in ("/v2/models/digits/ready", "/v2/models/digits", "/v2/models/digits/config"):
        response = ask("GET", path)
        assert response.status_code == 503
        assert "its file is damaged" in error_of(response)
    assert ask("POST", "/v2/models/digits/infer", json=INFER).status_code == 503


def test_models_are_listed_with_their_inputs(ask: Ask, service: FakeService) -> None:
    service.served["gone"] = ServedModel("gone", None, {}, False, "unloaded", is_unloaded=True)
    digits, animals, gone = ask("GET", "/v1/models").json()
    assert (digits["name"], digits["version"], digits["versions"]) == ("digits", 3, [2, 3])
    assert (digits["input_datatype"], digits["input_shape"]) == ("FP32", [4])
    assert (animals["takes_images"], animals["has_classes"], animals["classes"]) == (True, True, 3)
    assert (gone["name"], gone["is_ready"], gone["reason"]) == ("gone", False, "unloaded")


def test_an_unloaded_model_is_not_found_until_it_is_loaded_again(
    ask: Ask, service: FakeService
) -> None:
    gone = ServedModel("animals", None, {}, False, "it was unloaded", is_unloaded=True)
    service.served["animals"] = gone
    images = {"content": b"image"}
    responses = [ask("GET", f"/v2/models/animals{end}") for end in ("", "/ready", "/config")]
    responses += [
        ask("GET", "/v2/models/animals/versions/7"),
        ask("POST", "/v2/models/animals/infer", json=INFER),
        ask("POST", "/v2/models/animals/versions/7/infer", json=INFER),
        ask("POST", "/v1/models/animals/classify", **images),
    ]
    for response in responses:
        assert response.status_code == 404
        assert "it was unloaded" in error_of(response)
        assert "retry-after" not in response.headers


def test_a_version_that_all_workers_have_lost_is_unavailable_not_unknown(
    ask: Ask, service: FakeService
) -> None:
    service.served["animals"] = ServedModel("animals", ANIMALS, {}, False, "")
    assert ask("GET", "/v2/models/animals/versions/7").status_code == 503


def test_metadata_and_configuration(ask: Ask) -> None:
    assert "binary_tensor_data" in ask("GET", "/v2").json()["extensions"]
    assert ask("GET", "/v2/").json() == ask("GET", "/v2").json()
    described = ask("GET", "/v2/models/digits").json()
    assert described["versions"] == ["2", "3"]
    assert described == ask("GET", "/v2/models/digits/versions/2").json()
    configured = ask("GET", "/v2/models/digits/config").json()
    assert configured["max_batch_size"] == 8
    assert configured["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [4]}]
    assert "parameters" not in configured


def test_the_configuration_tells_the_threshold(ask: Ask, service: FakeService) -> None:
    service.served["animals"] = served(replace(ANIMALS, unknown_below=0.875))
    configured = ask("GET", "/v2/models/animals/config").json()
    assert configured["parameters"] == {"unknown_below": {"string_value": "0.875"}}


def test_statistics(ask: Ask) -> None:
    ask("POST", "/v2/models/digits/infer", json=INFER)
    old, new = ask("GET", "/v2/models/digits/stats").json()["model_stats"]
    assert (old["version"], old["inference_count"], old["last_inference"]) == ("2", 0, 0)
    assert (new["version"], new["inference_count"], new["execution_count"]) == ("3", 1, 1)
    assert new["inference_stats"]["queue"] == {"count": 1, "ns": 4_000_000}
    assert new["batch_stats"] == [{"batch_size": 1, "compute_infer": {"count": 1, "ns": 4_000_000}}]
    # The clock stands at 100 and the answer came at 5: it is 95 s old, whatever time it is now.
    assert new["last_inference"] > 1_700_000_000_000
    names = [each["name"] for each in ask("GET", "/v2/models/stats").json()["model_stats"]]
    assert names == ["digits", "digits", "animals"]
    (one,) = ask("GET", "/v2/models/digits/versions/3/stats").json()["model_stats"]
    assert one["inference_count"] == 1


def test_repository(ask: Ask, service: FakeService) -> None:
    service.served["digits"] = ServedModel("digits", None, {}, False, "unloaded")
    all_of_them = ask("POST", "/v2/repository/index").json()
    assert all_of_them == [
        {"name": "digits", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"},
        {"name": "animals", "version": "7", "state": "READY", "reason": ""},
    ]
    assert ask("POST", "/v2/repository/index", json={"ready": True}).json() == all_of_them[1:]
    assert ask("POST", "/v2/repository/models/digits/load", json={}).json()["version"] == "8"
    assert ask("POST", "/v2/repository/models/digits/unload").is_success
    assert service.done_to_models == ["reload digits", "unload digits"]
    assert 'dist_net_unloads_total{model="digits"} 1.0' in ask("GET", "/metrics").text
    service.scripted = [Result(Status.BAD_INPUT, reason="its file is damaged")]
    response = ask("POST", "/v2/repository/models/digits/load")
    assert (response.status_code, error_of(response)) == (400, "its file is damaged")


def test_a_rollout(ask: Ask, service: FakeService) -> None:
    path = "/v2/repository/models/digits"
    assert ask("POST", f"{path}/load", json={"parameters": {"share": 0.05}}).is_success
    assert ask("POST", f"{path}/confirm").json() == {"name": "digits", "version": "8"}
    assert ask("POST", f"{path}/rollback", json={}).is_success
    expected = ["reload digits 0.05", "confirmed digits", "rolled back digits"]
    assert service.done_to_models == expected
    for share in (0, -0.1, 1.5, True, "0.1", None):
        response = ask("POST", f"{path}/load", json={"parameters": {"share": share}})
        assert response.status_code == 400
    assert ask("POST", "/v2/repository/models/animals/confirm").status_code == 400
    assert service.done_to_models[3:] == ["confirmed animals"]
    metrics = ask("GET", "/metrics").text
    for name, value in (("share", "0.05"), ("errors", "1.0")):
        assert f'dist_net_rollout_{name}{{model="digits",version="4"}} {value}' in metrics


# Images


def test_an_image_is_classified(ask: Ask, service: FakeService) -> None:
    response = ask("POST", "/v1/models/animals/classify?top=2", content=JPEG)
    answer = response.json()
    timings = answer.pop("timings")
    expected = probabilities(service.requests[0])[0]
    best = np.argsort(-expected)[:2]
    assert answer == {
        "model": "animals",
        "version": 7,
        "predictions": [
            {
                "index": int(index),
                "label": ANIMALS.labels[index],
                "probability": float(expected[index]),
            }
            for index in best
        ],
    }
    assert timings.pop("total_ms") > 0
    assert timings == {"queue_ms": 1, "prepare_ms": 2, "compute_ms": 4, "batch_rows": 1}


@pytest.mark.usefixtures("with_older")
@pytest.mark.parametrize(("threshold", "is_unknown"), [(0.5, False), (0.75, True)])
def test_an_answer_is_unknown_by_the_threshold_of_the_version_that_gave_it(
    ask: Ask, service: FakeService, threshold: float, is_unknown: bool
) -> None:
    row = np.array([0.1, 0.7, 0.2], "<f4").tobytes()
    result = Result(Status.OK, 5, row, labels=("a", "b", "c"), unknown_below=threshold)
    service.scripted = [result] * 2
    answer = ask("POST", "/v1/models/animals/classify?top=1", content=JPEG).json()
    assert list(answer) == [
        "model",
        "version",
        "unknown_below",
        "predictions",
        "unknown",
        "timings",
    ]
    assert (answer["unknown_below"], answer["unknown"]) == (threshold, is_unknown)
    assert answer["predictions"][0]["label"] == "b"
    del service.served["digits"]
    assert ask("POST", "/v1/classify", content=JPEG).json()["unknown"] is is_unknown


def test_each_image_of_a_form_is_known_or_not(ask: Ask, service: FakeService) -> None:
    service.scripted = [
        Result(Status.OK, 7, np.array(row, "<f4").tobytes(), unknown_below=0.6)
        for row in ([0.1, 0.7, 0.2], [0.4, 0.4, 0.2])
    ]
    files = [("image", (name, JPEG, "image/jpeg")) for name in ("a.jpg", "b.jpg")]
    answer = ask("POST", "/v1/models/animals/classify", files=files).json()
    assert answer["unknown_below"] == 0.6
    assert [each["unknown"] for each in answer["images"]] == [False, True]


def test_the_only_model_needs_no_name(ask: Ask, service: FakeService) -> None:
    del service.served["digits"]
    assert ask("POST", "/v1/classify", content=JPEG).json()["model"] == "animals"


def test_a_bad_image_of_a_form_fails_alone(ask: Ask, service: FakeService) -> None:
    files = [
        ("image", ("good.jpg", JPEG, "image/jpeg")),
        ("image", ("bad.jpg", BAD_IMAGE, "image/jpeg")),
        ("image", ("umlaut-ü.png", b"\r\n--\r\n\r\n", "image/png")),
    ]
    response = ask("POST", "/v1/models/animals/classify", files=files, data={"note": "hello"})
    assert response.status_code == 200
    images = response.json()["images"]
    assert [image["name"] for image in images][:2] == ["good.jpg", "bad.jpg"]
    assert images[1]["error"] == "this is no image"
    assert len(images[0]["predictions"]) == len(images[2]["predictions"]) == 3
    assert [bytes(each.payload) for each in service.requests] == [each[1][1] for each in files]
    assert {each.version for each in service.requests} == {7}


def test_a_form_none_of_whose_images_is_answered_is_an_error(
    ask: Ask, service: FakeService
) -> None:
    service.scripted = [Result(Status.UNAVAILABLE, reason="full", retry_after_s=0.1)] * 2
    files = [("f", ("a", JPEG)), ("f", ("b", JPEG))]
    response = ask("POST", "/v1/models/animals/classify", files=files)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert [image["error"] for image in response.json()["images"]] == ["full", "full"]


def test_a_form_of_too_many_files_is_refused(ask: Ask) -> None:
    files = [("f", (str(number), JPEG)) for number in range(65)]
    assert ask("POST", "/v1/models/animals/classify", files=files).status_code == 413


@pytest.mark.parametrize("piece_bytes", [1, 7, 30, 2**20])
def test_a_form_is_taken_apart_wherever_its_boundaries_lie(
    monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(classify, "_PIECE_BYTES", piece_bytes)
    random = np.random.default_rng(piece_bytes)
    pieces = [b"\r\n", b"--", b"b", b"\r\n--", b"\r\n--B", b"x"]  # never the whole boundary
    for _ in range(50):
        contents = [
            b"".join(pieces[each] for each in random.integers(len(pieces), size=9))
            for _ in range(3)
        ]
        head = b'\r\nContent-Disposition: form-data; name="f"; filename="p"\r\n\r\n'
        body = b"\r\n".join(b"--Boundary" + head + each for each in contents)
        body = random.choice([b"", b"\r\n"]) + body + b"\r\n--Boundary--\r\n"
        found = finished(form_images(bytearray(body), b"multipart/form-data; boundary=Boundary"))
        assert [bytes(each.content) for each in found] == contents


FORM_TYPE = b"multipart/form-data; boundary=B"
PART = b'--B\r\nContent-Disposition: form-data; name="f"; filename="p"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b"multipart/form-data; boundary=" + b"B" * 300,
        b"multipart/form-data" + b";" * 10_000,
        b"multipart/form-data; " + b'"' + b";" * 10_000,
        b"multipart/form-data; boundary*=x'y'%B",
        b"multipart/form-data; boundary*0*=x'y'%B; boundary*1=z",
    ],
)
def test_a_form_without_a_usable_boundary_is_refused(content_type: bytes) -> None:
    with pytest.raises(BadRequestError):
        finished(form_images(PART + b"--B--", content_type))


@pytest.mark.parametrize(
    "body",
    [
        b"no boundary",
        PART,
        PART + b"--B-",
        PART.replace(b"Disposition", b"Dispo sition") + b"--B--",
        PART.replace(b"form-data", b"x" * 5000) + b"--B--",
        PART.replace(b"Content", b"a: b\r\n" * 1000 + b"Content") + b"--B--",
        PART.replace(b"\r\n\r\n", b"\r\n") + b"--B--",
        b"\r\n" * 1000,
        b"--B--",
    ],
)
def test_a_damaged_form_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        finished(form_images(body, FORM_TYPE))


@pytest.mark.parametrize("body", [PART * 129, PART[:-3] + b"\r\n--Bx" * 1000])
def test_a_form_of_too_many_parts_is_refused(body: bytes) -> None:
    with pytest.raises(RequestTooLargeError):
        finished(form_images(body + b"--B--", FORM_TYPE))


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        (b'filename="a;b.png"', "a;b.png"),
        (b"filename=a.png", "a.png"),
        (b'FileName=""', ""),
        ('filename="ü.png"'.encode(), "ü.png"),
        (b'filename="\xff"', "\ufffd"),
    ],
)
def test_a_file_has_any_name(parameter: bytes, name: str) -> None:
    body = PART.replace(b'filename="p"', parameter) + b"--B--"
    (image,) = finished(form_images(body, FORM_TYPE))
    assert image.name == name


# The page, metrics, OpenAPI


@pytest.fixture
def with_samples(service: FakeService) -> None:
    """There are images to try the animals with."""
    samples = EncodedImage("cat", b"a PNG file"), EncodedImage("hen", b"another")
    service.served["animals"] = replace(service.served["animals"], samples=samples)


@pytest.mark.usefixtures("with_samples")
def test_a_models_samples_are_listed_and_given(ask: Ask) -> None:
    listed = ask("GET", "/v1/models/animals/samples").json()
    assert [each["label"] for each in listed] == ["cat", "hen"]
    given = [ask("GET", each["path"]) for each in listed]
    assert [each.content for each in given] == [b"a PNG file", b"another"]
    assert {each.headers["content-type"] for each in given} == {"image/png"}
    assert {each.headers["x-content-type-options"] for each in given} == {"nosniff"}
    assert ask("GET", "/v1/models/digits/samples").json() == []


@pytest.mark.usefixtures("with_samples")
@pytest.mark.parametrize("number", ["2", "-1", "01", "a", "%C2%B2", "..%2F0"])
def test_a_sample_that_is_not_there_is_refused(ask: Ask, number: str) -> None:
    response = ask("GET", f"/v1/models/animals/samples/{number}")
    assert response.status_code == 404
    error_of(response)


@pytest.mark.usefixtures("with_samples")
def test_the_pool_tells_the_page_how_a_model_takes_images(ask: Ask) -> None:
    digits, animals = ask("GET", "/pool").json()["models"]
    told = "input_shape", "fitting", "unknown_below", "samples"
    assert [animals[name] for name in told] == [[2, 2, 3], "pad", 0, 2]
    assert [digits[name] for name in told] == [[4], "letterbox", 0, 0]


def test_the_pages_files(ask: Ask) -> None:
    response = ask("GET", "/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert ask("GET", "/samples/cat.png").content == b"png"
    again = ask("GET", "/", headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for path in ("/samples/..%2fpage.js", "/samples/../../x", "/samples"):
        assert ask("GET", path).status_code == 404


def test_the_page_has_words_only_for_refusals_that_the_server_gives() -> None:
    told = re.findall(r"^  (\d{3}): ", (PAGE / "gateway.js").read_text(), re.MULTILINE)
    given = {code for _, code in CODE_OF_ERROR} | {*CODE_OF_STATUS.values()} | {401, 403, 408, 415}
    assert told
    assert {int(code) for code in told} <= given


def test_the_pool_is_shown_with_labels(ask: Ask) -> None:
    response = ask("GET", "/pool")
    assert response.headers["cache-control"] == "no-store"
    assert [each["labels"] for each in response.json()["models"]] == [[], ["cat", "dog", "hen"]]
    assert response.json()["models"][0]["batch_rows"] == {"1": 5}


def test_metrics_are_read_from_the_pool(ask: Ask, service: FakeService) -> None:
    ask("POST", "/v2/models/digits/infer", json=INFER)
    service.counted["digits"][NO_VERSION] = ModelStatistics(refused=4, retried=3)
    response = ask("GET", "/metrics")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["nv_inference_request_success", "digits"] == 1
    assert samples["nv_inference_count", "digits"] == 1
    assert samples["nv_inference_queue_duration_us", "digits"] == 4000
    assert samples["dist_net_requests_total", "answered", "digits"] == 1
    assert samples["dist_net_requests_total", "digits", "refused"] == 4
    assert samples["dist_net_retries_total", "digits"] == 3
    assert samples["dist_net_batches_total", "1", "digits"] == 1
    assert samples["dist_net_workers", "busy"] == 1
    assert samples["dist_net_queue_requests",] == 1
    assert samples["dist_net_latency_seconds_bucket", "+Inf", "digits", "queue"] == 1
    assert samples["dist_net_latency_seconds_bucket", "0.0025", "digits", "queue"] == 0
    assert samples["dist_net_latency_seconds_bucket", "0.005", "digits", "queue"] == 1
    assert samples["dist_net_latency_seconds_sum", "digits", "queue"] == 0.004
    assert samples["dist_net_client_requests_total", "127.0.0.1"] == 2
    assert samples["dist_net_client_received_bytes_total", "127.0.0.1"] > 0
    assert samples["dist_net_loop_lag_seconds_count",] == 0
    service.is_ready = False
    assert "dist_net_ready 0.0" in ask("GET", "/metrics").text


def test_refused_requests_are_counted_and_logged(
    ask: Ask, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(50):
        assert ask("GET", f"/none%1B[31m/{number}").status_code == 404
    assert ask("POST", "/v2/models/digits/infer", json={}).status_code == 400
    service.scripted = [Result(Status.UNAVAILABLE, reason="full", retry_after_s=3.2)]
    assert ask("POST", "/v1/models/animals/classify", content=JPEG).status_code == 503
    assert ask("GET", "/pool", headers={"host": "evil.example"}).status_code == 403
    assert ask("POST", "/v2/models/digits/infer", json=INFER).is_success
    text = ask("GET", "/metrics").text
    counted = [line.partition("dist_net_http_refused_total{") for line in text.splitlines()]
    assert ["{" + rest for before, found, rest in counted if found and not before] == [
        '{code="400"} 1.0',
        '{code="403"} 1.0',
        '{code="404"} 50.0',
        '{code="503"} 1.0',
    ]
    lines = [each.getMessage() for each in caplog.records if "request_refused" in each.message]
    assert all(line.isprintable() for line in lines)
    assert [sum(f"code={code}" in line for line in lines) for code in (400, 403, 404, 503)] == [
        1,
        1,
        20,
        1,
    ]


def test_the_log_says_how_many_refusals_it_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    refusals = Refusals()
    for _ in range(120):
        refusals.note(404, "GET /", "none")
    now_s = 61.0
    refusals.note(404, "GET /", "none")
    logged = [each.getMessage() for each in caplog.records]
    assert len(logged) == 22
    assert "100" in logged[20]
    assert refusals.counts == {404: 121}


@pytest.mark.usefixtures("with_samples")
def test_openapi_describes_every_address(ask: Ask) -> None:
    document = ask("GET", "/openapi.json").json()
    for path, operations in document["paths"].items():
        # No address is described that answers as if it were none; and with the right method.
        filled = path.format(model="animals", version="7", number="0")
        for method in operations:
            response = ask(method, filled, content=JPEG)
            assert "Not Found" not in response.text, path
            assert response.status_code != 405, path
    referred = set(re.findall(r"#/components/(\w+)/(\w+)", json.dumps(document)))
    kinds = ("parameters", "schemas", "responses")
    assert referred == {(kind, name) for kind in kinds for name in document["components"][kind]}


def test_no_address_is_left_undescribed(ask: Ask, service: FakeService, page: Path) -> None:
    app: Any = application(service, HttpSettings(), page=page)
    files = {route.path for route in page_routes(page)}
    document = ask("GET", "/openapi.json").json()
    described = document["paths"]
    methods: dict[str, set[str]] = defaultdict(set)
    for route in app.application.routes:
        if route.path in files or re.search("sharedmemory|trace|logging", route.path):
            continue
        (method,) = {each.lower() for each in route.methods} - {"head"}
        operation = described[route.path][method]
        assert operation["summary"]
        named = [each.get("$ref", each.get("in")) for each in operation.get("parameters", ())]
        expected = {f"#/components/parameters/{name}" for name in route.param_convertors}
        assert expected == set(named) - {"#/components/parameters/top", "query"}
        methods[route.path].add(method)
    assert methods == {path: {*operations} for path, operations in described.items()}
    tensor = document["components"]["schemas"]["InferRequest"]["properties"]["inputs"]["items"]
    assert tensor["properties"]["datatype"]["enum"] == [*TYPE_CODES, "BYTES"]
    assert document["info"]["version"]


def test_the_page_is_nothing_but_files_for_browsers() -> None:
    kinds = {Path(route.path).suffix for route in page_routes()}
    assert kinds == {"", ".css", ".html", ".js", ".jpg", ".png", ".svg"}


# Who may ask


def test_a_token_is_asked_for_but_by_probes_and_the_page(
    service: FakeService, page: Path, tokens: TokenFile
) -> None:
    ask = asking(service, page, tokens=tokens)
    files = ("/", "/page.js", "/samples/cat.png", "/openapi.json")
    for path in ("/v2/health/live", "/v2/health/ready", *files):
        assert ask("GET", path).is_success, path
    for path in ("/v2", "/pool", "/metrics", "/v2/models/digits", "/nothing", "/v2/health"):
        response = ask("GET", path)
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == "Bearer"
        error_of(response)
    assert ask("POST", "/v2/models/digits/infer", json=INFER).status_code == 401
    assert not service.requests


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"BEARER  {TOKEN} ", 200),
        (f"Bearer {CLIENT_TOKEN}", 200),
        (f"Bearer client {CLIENT_TOKEN}", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        ("Bearer ", 401),
        ("", 401),
    ],
)
def test_only_a_token_opens(
    service: FakeService, page: Path, tokens: TokenFile, header: str, code: int
) -> None:
    ask = asking(service, page, tokens=tokens)
    assert ask("GET", "/pool", headers={"authorization": header}).status_code == code


FOR_OPERATORS = [
    ("POST", "/v2/repository/models/digits/load"),
    ("POST", "/v2/repository/models/digits/unload"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), FOR_OPERATORS)
def test_a_client_may_not_what_an_operator_may(
    service: FakeService, page: Path, tokens: TokenFile, method: str, path: str
) -> None:
    ask = asking(service, page, tokens=tokens)
    refused = ask(method, path, headers={"authorization": f"Bearer {CLIENT_TOKEN}"})
    assert (refused.status_code, "operator" in error_of(refused)) == (403, True)
    assert service.done_to_models == []
    assert ask(method, path, headers={"authorization": f"Bearer {TOKEN}"}).is_success
    assert asking(service, page)(method, path).is_success  # a process of this host


def test_a_client_may_ask_and_look(service: FakeService, page: Path, tokens: TokenFile) -> None:
    ask = asking(service, page, tokens=tokens)
    headers = {"authorization": f"Bearer {CLIENT_TOKEN}"}
    for path in ("/v2", "/pool", "/v2/models/digits", "/v2/models/stats"):
        assert ask("GET", path, headers=headers).is_success
    assert ask("POST", "/v2/repository/index", headers=headers).is_success
    assert ask("POST", "/v2/models/digits/infer", json=INFER, headers=headers).is_success


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "localhost:80"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": ""}, 403),
        ({"host": "localhost", "origin": "http://localhost"}, 200),
        ({"host": "localhost", "origin": "http://evil.example"}, 403),
        ({"host": "localhost", "origin": "null"}, 403),
        # A proxy with TLS has rewritten Host; a browser says that the page is the server's own.
        (
            {"host": "127.0.0.1:8000", "origin": "https://a.example"}
            | {"sec-fetch-site": "same-origin"},
            200,
        ),
        ({"host": "evil.example", "sec-fetch-site": "same-origin"}, 403),
        *(
            ({"host": "localhost", "origin": "http://evil.example", "sec-fetch-site": site}, 403)
            for site in ("cross-site", "same-site", "none", "")
        ),
    ],
)
def test_pages_of_other_sites_may_not_ask(ask: Ask, headers: dict[str, str], code: int) -> None:
    assert ask("GET", "/pool", headers=headers).status_code == code


@pytest.mark.parametrize("name", ["host", "origin", "authorization", "content-encoding"])
def test_a_header_that_decides_is_not_repeated(
    service: FakeService, page: Path, tokens: TokenFile, name: str
) -> None:
    """A proxy before this server may have read the other one."""
    values = [(name, "localhost"), (name, "localhost")]
    for settings in ({}, {"tokens": tokens}):
        response = asking(service, page, **settings)("GET", "/v2/health/live", headers=values)
        assert (response.status_code, name in error_of(response)) == (400, True)


def test_a_server_with_a_token_has_any_name(
    service: FakeService, page: Path, tokens: TokenFile
) -> None:
    """No page of another site knows the token."""
    ask = asking(service, page, tokens=tokens)
    headers = {"host": "models.example", "authorization": f"Bearer {TOKEN}"}
    assert ask("GET", "/pool", headers=headers).is_success
    assert ask("GET", "/pool", headers=headers | {"origin": "https://a.example"}).is_success


def test_beyond_this_host_nobody_listens_without_a_token(tmp_path: Path, tokens: TokenFile) -> None:
    tls = {"certificate": tmp_path, "private_key": tmp_path}
    for settings in ({}, tls):
        with pytest.raises(InsecureAddressError, match="--token-file"):
            HttpSettings(address="0.0.0.0:8000", **settings)
        HttpSettings(address="0.0.0.0:8000", tokens=tokens, **settings)
        HttpSettings(address="127.0.0.1:8000", **settings)


@pytest.mark.parametrize("address", [":99999", "localhost", "127.0.0.1:x", "a@b:80", "[::1:80", ""])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(AddressError, match=naming(f"'{address}'", "HOST:PORT")) as raised:
        HttpSettings(address=address)
    assert repr(address) in str(raised.value)
    assert "tcp" not in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"certificate": Path("c")},
        {"private_key": Path("k")},
        {"body_bytes": 0},
        {"body_timeout_s": -1.0},
    ],
)
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        HttpSettings(**settings)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/models/digits/infer", {"POST"}),
        ("DELETE", "/v2/models/digits", {"GET", "HEAD"}),
        ("GET", "/v1/models/animals/classify", {"POST"}),
        ("POST", "/pool", {"GET", "HEAD"}),
        ("PUT", "/", {"GET", "HEAD"}),
        ("GET", "/v2/repository/index", {"POST"}),
    ],
)
def test_another_method_is_told_which_ones_are_allowed(
    ask: Ask, method: str, path: str, allowed: set[str]
) -> None:
    response = ask(method, path)
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == allowed


# Clients that go, and bodies in pieces: the application is called as a server does it


class Client:
    """A client whose events are scripted; what it is sent is kept."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self._events = list(events)
        self.sent: list[dict[str, Any]] = []
        self.received = 0
        self.has_gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        self.received += 1
        if self._events:
            return self._events.pop(0)
        await self.has_gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


def piece(body: bytes, more_body: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more_body}


SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v2/models/digits/infer",
    "headers": [(b"host", b"localhost")],
}
BODY = json.dumps(INFER).encode()


async def served_with(service: FakeService, *events: dict[str, Any], **settings: Any) -> Client:
    client = Client(*events)
    await application(service, HttpSettings(**settings))(SCOPE, client.receive, client.send)  # type: ignore[arg-type]
    return client


def test_a_body_comes_in_pieces(service: FakeService) -> None:
    events = (piece(BODY[:9], True), piece(b"", True), piece(BODY[9:]))
    client = asyncio.run(served_with(service, *events))
    assert client.sent[0]["status"] == 200
    assert client.received == 3  # nobody looked whether the client was still there


@pytest.mark.parametrize(("shape", "status"), [((4,), 200), ((2, 2), 400)])
def test_a_request_is_checked_again_if_a_model_is_loaded_while_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch, service: FakeService, shape: tuple[int, ...], status: int
) -> None:
    parsed, in_slices = [], exchange.HttpExchange.in_slices

    async def slowly(body: exchange.HttpExchange, work: Any) -> Any:
        parsed.append(service.served["digits"].description)
        result = await in_slices(body, work)
        if len(parsed) == 1:
            service.served["digits"] = served(with_input(DIGITS, version=4, shape=shape))
        return result

    monkeypatch.setattr(exchange.HttpExchange, "in_slices", slowly)
    client = asyncio.run(served_with(service, piece(BODY)))
    assert client.sent[0]["status"] == status
    assert [each.version for each in parsed if each][:2] == [3, 4]  # and then the answer
    assert len(service.requests) == (status == 200)


def test_a_client_that_goes_before_its_body_is_whole_asks_nothing(service: FakeService) -> None:
    events = (piece(BODY[:9], True), {"type": "http.disconnect"})
    assert asyncio.run(served_with(service, *events)).sent == []
    assert service.requests == []


def test_pieces_are_limited_one_body_and_all_together(service: FakeService) -> None:
    async def all_at_once() -> list[int]:
        app = application(service, HttpSettings(body_bytes=100, queue_bytes=150))
        big = Client(piece(bytes(60), True), piece(bytes(60), True))
        await app(SCOPE, big.receive, big.send)  # type: ignore[arg-type]
        slow = [Client(piece(bytes(80), True)) for _ in range(2)]
        tasks = [asyncio.create_task(app(SCOPE, c.receive, c.send)) for c in slow]  # type: ignore[arg-type]
        await tasks[1]
        slow[0].has_gone.set()
        await tasks[0]
        again = Client(piece(bytes(80), True), piece(b"x"))
        await app(SCOPE, again.receive, again.send)  # type: ignore[arg-type]
        late = Client(piece(bytes(80), True), piece(bytes(80)))
        await app(SCOPE, late.receive, late.send)  # type: ignore[arg-type]
        assert slow[0].sent == []
        return [client.sent[0]["status"] for client in (big, slow[1], again, late)]

    assert asyncio.run(all_at_once()) == [413, 503, 400, 413]


BOUNDARY = (b"content-type", b"multipart/form-data; boundary=B")
FORM = (
    b'--B\r\nContent-Disposition: form-data; name="note"\r\n\r\n%s\r\n'
    b'--B\r\nContent-Disposition: form-data; name="f"; filename="p"\r\n\r\n%s\r\n--B--\r\n'
)


def form(note: bytes) -> tuple[dict[str, Any], bytes]:
    """A form with an image and a note that nobody reads, and its request's scope."""
    headers = [*SCOPE["headers"], BOUNDARY]  # type: ignore[misc]
    scope = SCOPE | {"path": "/v1/models/animals/classify", "query_string": b""}
    return scope | {"headers": headers}, FORM % (note, JPEG)


def test_a_body_is_held_until_it_is_answered(service: FakeService) -> None:
    async def three() -> list[int]:
        service.is_silent = True
        app = application(service, HttpSettings(queue_bytes=3_000_000))
        scope, body = form(bytes(2_000_000))
        clients = [Client(piece(body)) for _ in range(3)]
        first = asyncio.create_task(app(scope, clients[0].receive, clients[0].send))  # type: ignore[arg-type]
        while not service.futures:
            await asyncio.sleep(0)
        service.is_silent = False
        await app(scope, clients[1].receive, clients[1].send)  # type: ignore[arg-type]
        service.futures[0].set_result(service._answer(service.requests[0]))
        await first
        await app(scope, clients[2].receive, clients[2].send)  # type: ignore[arg-type]
        return [client.sent[0]["status"] for client in clients]

    assert asyncio.run(three()) == [200, 503, 200]


def test_a_body_that_could_never_be_held_is_too_large(service: FakeService) -> None:
    client = asyncio.run(served_with(service, piece(bytes(200)), queue_bytes=100))
    assert client.sent[0]["status"] == 413


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of slices of each work that exchanges do."""
    counts, in_slices = list[int](), exchange.HttpExchange.in_slices

    async def counting(served_one: exchange.HttpExchange, work: Any) -> Any:
        number = len(counts)
        counts.append(0)

        def counted() -> Any:
            while True:
                try:
                    next(work)
                except StopIteration as end:
                    return end.value
                counts[number] += 1
                yield

        return await in_slices(served_one, counted())

    monkeypatch.setattr(exchange.HttpExchange, "in_slices", counting)
    return counts


def test_forms_are_taken_apart_in_slices(service: FakeService, slices: list[int]) -> None:
    scope, body = form(bytes(2_000_000))
    client = Client(piece(body))
    app = application(service, HttpSettings())
    asyncio.run(app(scope, client.receive, client.send))  # type: ignore[arg-type]
    assert client.sent[0]["status"] == 200
    assert slices[0] > 400
    assert bytes(service.requests[0].payload) == JPEG


def test_long_json_is_read_and_written_in_slices(
    ask: Ask, service: FakeService, slices: list[int]
) -> None:
    size = 100_000
    output = DIGITS.outputs[0]._replace(shape=(size,))
    model = with_input(DIGITS, shape=(size,))
    service.served["digits"] = served(replace(model, outputs=(output,)))
    service.scripted = [Result(Status.OK, 3, np.arange(size, dtype="<f4").tobytes())]
    data = np.arange(size).tolist()
    tensor = {"name": "input", "shape": [1, size], "datatype": "FP32", "data": [data]}
    response = ask("POST", "/v2/models/digits/infer", json={"inputs": [tensor]})
    assert response.json()["outputs"][0]["data"] == data
    assert np.array_equal(np.frombuffer(service.requests[0].payload, "<f4"), data)
    assert slices[0] > 40
    assert slices[1] > 40


@pytest.mark.parametrize("path", ["infer", "classify"])
def test_many_classes_are_written_in_slices(
    ask: Ask, service: FakeService, slices: list[int], path: str
) -> None:
    """64 images of 1,000 classes took seconds, in which no other request was answered."""
    images, classes = 64, 1000
    payload = np.linspace(0, 1, classes, dtype="<f4").tobytes()
    service.scripted = [Result(Status.OK, 7, payload) for _ in range(images)]
    output = ANIMALS.outputs[0]._replace(shape=(classes,))
    service.served["animals"] = served(replace(ANIMALS, outputs=(output,)))
    if path == "infer":
        raw = bytes_of_elements([JPEG] * images)
        tensor = {"name": "input", "shape": [images], "datatype": "BYTES"}
        tensor["parameters"] = {"binary_data_size": len(raw)}
        outputs = [{"name": "probabilities", "parameters": {"classification": classes}}]
        text = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        response = ask("POST", "/v2/models/animals/infer", content=text + raw, headers=headers)
        assert response.json()["outputs"][0]["shape"] == [images, classes]
    else:
        files = [("f", ("a", JPEG))] * images
        response = ask("POST", "/v1/models/animals/classify?top=1000", files=files)
        answers = response.json()["images"]
        assert [len(each["predictions"]) for each in answers] == [classes] * images
        best = {"index": 999, "label": "999", "probability": 1.0}
        assert answers[0]["predictions"][0] == best
    assert slices[-1] > images


@pytest.mark.parametrize(
    "text",
    [b'{"":0},' * 2**14, b"[]," * 2**17, b'"a",' * 2**15],
    ids=["objects", "arrays", "strings"],
)
def test_json_that_takes_long_to_read_is_refused(ask: Ask, text: bytes) -> None:
    """A megabyte of empty objects would keep the interpreter's lock for a quarter of a second."""
    body = b'{"inputs":[' + text + b"0]}"
    for path in ("/v2/models/digits/infer", "/v2/repository/index"):
        assert ask("POST", path, content=body).status_code == 413


@pytest.mark.parametrize("path", ["/v2/models/digits/infer", "/v1/models/animals/classify"])
def test_what_a_client_asked_that_went_is_cancelled(service: FakeService, path: str) -> None:
    async def leave() -> bool:
        service.is_silent = True
        body = BODY if "infer" in path else JPEG
        client = Client(piece(body))
        app = application(service, HttpSettings())
        scope = SCOPE | {"path": path, "query_string": b""}
        task = asyncio.create_task(app(scope, client.receive, client.send))  # type: ignore[arg-type]
        while not service.futures:
            await asyncio.sleep(0)
        client.has_gone.set()
        await task
        return service.futures[0].cancelled()

    assert asyncio.run(leave())


def test_a_server_that_ends_cancels_what_was_asked_and_says_so(service: FakeService) -> None:
    async def end() -> Client:
        service.is_silent = True
        app = application(service, HttpSettings())
        raw = bytes_of_elements([JPEG, JPEG])
        tensor = {"name": "input", "shape": [2], "datatype": "BYTES"}
        tensor["parameters"] = {"binary_data_size": len(raw)}
        text = json.dumps({"inputs": [tensor]}).encode()
        client = Client(piece(text + raw))
        length = (b"inference-header-content-length", b"%d" % len(text))
        scope = SCOPE | {"path": "/v2/models/animals/infer"}
        scope["headers"] = [*SCOPE["headers"], length]  # type: ignore[misc]
        task = asyncio.create_task(app(scope, client.receive, client.send))  # type: ignore[arg-type]
        while not service.futures:
            await asyncio.sleep(0)
        task.cancel()
        await task
        return client

    assert asyncio.run(end()).sent[0]["status"] == 503
    assert [future.cancelled() for future in service.futures] == [True, True]


def test_an_answer_after_a_while_is_given(service: FakeService) -> None:
    async def wait() -> Client:
        service.is_silent = True
        client = Client(piece(BODY))
        app = application(service, HttpSettings())
        task = asyncio.create_task(app(SCOPE, client.receive, client.send))  # type: ignore[arg-type]
        while client.received < 2:  # until somebody looks whether the client is still there
            await asyncio.sleep(0)
        service.futures[0].set_result(service._answer(service.requests[0]))
        await task
        return client

    assert asyncio.run(wait()).sent[0]["status"] == 200


def test_a_query_that_is_no_text_is_left_out_of_account(service: FakeService) -> None:
    async def one() -> Client:
        client = Client(piece(b""))
        scope = SCOPE | {"path": "/nothing", "query_string": b"\xff"}
        await application(service, HttpSettings())(scope, client.receive, client.send)  # type: ignore[arg-type]
        return client

    assert asyncio.run(one()).sent[0]["status"] == 404


def test_models_without_labels_are_named_by_number(service: FakeService, page: Path) -> None:
    described = served(replace(ANIMALS, labels=()))
    service.served = {"animals": described}
    answer = asking(service, page)("POST", "/v1/classify", content=JPEG).json()
    assert {each["label"] for each in answer["predictions"]} == {"0", "1", "2"}
    assert DIGITS.labels == ()


def test_a_net_that_predicts_numbers_is_not_asked_for_classes(
    service: FakeService, page: Path
) -> None:
    (input_spec,) = ANIMALS.inputs
    numbers = described("animals", has_classes=False, takes_images=True, inputs=(input_spec,))
    service.served = {"animals": served(numbers)}
    ask = asking(service, page)
    refused = ask("POST", "/v1/classify", content=JPEG)
    assert refused.status_code == 400
    assert "/v2/models/animals/infer" in refused.json()["error"]
    (output,) = ask("GET", "/v2/models/animals").json()["outputs"]
    assert output == {"name": "values", "datatype": "FP32", "shape": [-1, 3]}


def test_each_response_has_the_id_of_its_request_and_so_has_the_access_log(
    service: FakeService, page: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ask = asking(service, page, access_log=True)
    own = ask("POST", "/v2/models/digits/infer", json=INFER, headers={"x-request-id": "mine-1"})
    assert own.headers["x-request-id"] == "mine-1"
    forged = ask("GET", "/none", headers={"x-request-id": "two words"})
    assert forged.status_code == 404
    given = forged.headers["x-request-id"]
    assert len(given) == 16
    lines = [each.getMessage() for each in caplog.records]
    assert any(line.startswith("request id=mine-1 client='127.0.0.1' code=200 ") for line in lines)
    assert any(line.startswith(f"request_refused id={given} code=404 ") for line in lines)


TRACE = f"{7:032x}"


def test_a_request_continues_the_trace_of_its_client(
    service: FakeService, page: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ask = asking(service, page, access_log=True)
    headers = {"traceparent": f"00-{TRACE}-{9:016x}-01"}
    monkeypatch.setattr(request_log, "_tracer", None)  # as without the extra
    ask("POST", "/v2/models/digits/infer", json=INFER, headers=headers)
    ask("GET", "/v2", headers={"traceparent": "damaged"})
    lines = [each.getMessage() for each in caplog.records if "request id" in each.getMessage()]
    assert [line.split("trace=")[1] for line in lines] == [TRACE, ""]

    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the SDK is not installed")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    spans, provider = memory.InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(spans))
    monkeypatch.setattr(request_log, "_tracer", provider.get_tracer("test"))
    ask("POST", "/v2/models/digits/infer", json=INFER, headers=headers)
    ask("GET", "/none")
    first, second = spans.get_finished_spans()
    assert first.name == "POST /v2/models/digits/infer"
    assert (first.context.trace_id, first.parent.span_id) == (7, 9)
    assert (second.attributes["code"], second.parent) == (404, None)


def test_a_client_beyond_its_quota_is_told_when_to_come_back(
    service: FakeService, page: Path
) -> None:
    ask = asking(service, page, ClientLedger(1 << 20, Quota(rate=1)))
    codes = [ask("POST", "/v2/models/digits/infer", json=INFER).status_code for _ in range(3)]
    assert codes == [200, 429, 429]
    refused = ask("GET", "/v1/models")
    assert refused.headers["retry-after"] == "1"
    assert "quota of 1 requests per second" in refused.json()["error"]
    assert ask("GET", "/v2/health/live").status_code == 200
