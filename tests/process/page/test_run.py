"""The page of a run in a real browser: a worker is killed, the run is shown again, and exported."""

import json
import os
import re
import shutil
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dist_net
from dist_net.nn import Dense, Model, Sequential, cross_entropy_of_logits
from process import test_hosts

hosts = test_hosts.hosts
Start = Callable[..., Any]
LOST = "worker-1 on .* was lost: "


def on(host: str) -> list[str]:
    """Return the prefix that runs a command on a host of this name; root is required for that."""
    is_root = os.geteuid() == 0 and shutil.which("unshare") is not None
    return ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host] if is_root else []


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[[str], Any]]:
    """Opens a page that may not complain."""
    contexts, complaints = [], list[str]()

    def open_page(address: str) -> Any:
        contexts.append(browser.new_context())
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.set_default_timeout(60_000)
        return page

    yield open_page
    for each in contexts:
        each.close()
    assert complaints == []


def faults(page: Any) -> str:
    """The bars of lost workers."""
    drawn = page.locator(".lane-row .fault").evaluate_all(
        "all => all.map(e => e.getAttribute('d'))"
    )
    return "".join(each or "" for each in drawn)


@pytest.mark.main_path
def test_a_killed_worker_is_seen_in_words_and_in_the_picture_live_and_afterwards(
    start: Start, counting: str, tmp_path: Path, opened: Callable[[str], Any]
) -> None:
    run = tmp_path / "run"
    train = start("train", counting, "--epochs", "80", "--run-dir", str(run), "--json", "--page")
    page = opened(train.says(r"page: (http://\S+)")[1])
    page.locator(".chip.worker", has_text="worker-1").wait_for()
    assert not faults(page)
    train.report(lambda report: len(report["workers"]) == 2)
    os.kill(train.children["worker-1"], signal.SIGKILL)
    page.get_by_text(re.compile(LOST)).wait_for()
    page.wait_for_function("document.querySelector('.fault[d^=M]')")
    page.get_by_text("it ended with code -9").wait_for()
    page.locator("#state").get_by_text("Training").wait_for()
    train.result()
    page.locator("#sentence").get_by_text("The run is done.").wait_for()
    page.locator("#state").get_by_text("Finished").wait_for()

    watch = start("watch", str(run))
    again = opened(watch.says(r"page: (http://\S+)")[1])
    page_file = tmp_path / "run.html"
    assert start("watch", str(run), "--export", str(page_file)).ends() == 0
    for shown in again, opened(page_file.as_uri()):
        shown.locator("#sentence").get_by_text("The run is done.").wait_for()
        shown.get_by_text(re.compile(LOST)).wait_for()
        assert faults(shown)
        shown.get_by_label("Time of the run", exact=True).last.fill("0")
        shown.get_by_text(re.compile(LOST)).wait_for(state="detached")
        assert not faults(shown)
        shown.get_by_label("Length of the animation").select_option("10")
        shown.get_by_role("button", name="Play").press("Enter")
        shown.get_by_text(re.compile(LOST)).wait_for()
        shown.get_by_role("button", name="Newest").press("Enter")
        shown.locator("#sentence").get_by_text("The run is done.").wait_for()
    assert page_file.stat().st_size < 1e6


def test_the_end_of_a_classifier_shows_its_mistakes_also_in_an_exported_page(
    start: Start, tmp_path: Path, opened: Callable[[str], Any]
) -> None:
    run, page_file = tmp_path / "run", tmp_path / "run.html"
    train = start("train", "digits", "--epochs", "6", "--run-dir", str(run), "--json")
    accuracy = train.result()["test_accuracy"]
    assert start("watch", str(run), "--export", str(page_file)).ends() == 0
    assert page_file.stat().st_size < 150_000
    watch = start("watch", str(run))
    for page in opened(page_file.as_uri()), opened(watch.says(r"page: (http://\S+)")[1]):
        page.locator("#confusion tbody td").first.wait_for()
        counts = page.locator("#confusion tbody td").all_inner_texts()
        right = sum(map(int, counts[:: len("0123456789") + 1]))
        assert right / sum(map(int, counts)) == pytest.approx(accuracy)
        page.wait_for_function("document.querySelector('#filters img').naturalWidth > 8")
        page.wait_for_function("document.querySelector('#mistakes img').naturalWidth === 8")
        page.get_by_label("Time of the run", exact=True).last.fill("0")
        page.locator("#outcome").wait_for(state="hidden")


def test_the_page_of_a_folder_of_images_leads_to_its_report(
    start: Start, tmp_path: Path, opened: Callable[[str], Any]
) -> None:
    run = tmp_path / "runs" / "cats & dogs"
    run.mkdir(parents=True)
    (run / "folder.json").write_text("{}")  # of a head, which has no leases
    tokens = tmp_path / "tokens"
    tokens.write_text("client 0123456789abcdef\n")
    watch = start("watch", str(run), "--page", "127.0.0.1:0", "--page-token-file", str(tokens))
    page = opened(watch.says(r"page: (http://\S+)")[1])
    page.get_by_label("This page needs a token").fill("0123456789abcdef")
    page.get_by_role("button", name="Use token").click()
    link = page.get_by_role("link", name="the report of this folder")
    link.wait_for()
    link.click()
    page.get_by_text("no report; expected a run on a folder").wait_for()
    (run / "report.html").write_text("<h1>Cats</h1><script>document.body.remove()</script>")
    page.reload()
    page.get_by_role("heading", name="Cats").wait_for()
    page.get_by_role("link", name="Back").click()
    link.wait_for()


def test_a_notebook_shows_the_page_of_a_run_and_of_a_fit(
    start: Start, tmp_path: Path, opened: Callable[[str], Any]
) -> None:
    run = tmp_path / "run"
    start("train", "digits", "--epochs", "2", "--run-dir", str(run)).ends()
    inputs = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    targets = (inputs[:, 0] > 0).astype(np.int64)
    model = Model(Sequential(Dense(2)), inputs.shape[1:], cross_entropy_of_logits, np.float32)
    fitted = (inputs, targets)
    history = dist_net.fit(model, *fitted, epochs=3, validation=fitted, verbose=0)
    for shown, epochs in (dist_net.show(run), 2), (history, 3):
        (tmp_path / "cell.html").write_text(shown._repr_html_())
        page = opened((tmp_path / "cell.html").as_uri()).frame_locator("iframe")
        page.get_by_text(f"The run is done. Epoch {epochs}.0 of {epochs}, ").wait_for()
        page.locator("#loss path.test[d^=M]").wait_for(state="attached")
    page.locator("#cluster").wait_for(state="hidden")  # of fit, which has none
    assert "right on the test samples" in page.locator("#sentence").inner_text()


def test_viewers_that_read_nothing_neither_end_a_run_nor_lock_out_another(
    start: Start, counting: str, tmp_path: Path, opened: Callable[[str], Any]
) -> None:
    run = tmp_path / "run"
    train = start("train", counting, "--epochs", "40", "--run-dir", str(run), "--json", "--page")
    address = train.says(r"page: (http://\S+)")[1]
    host, port = address.removeprefix("http://").strip("/").split(":")
    held = []
    for _ in range(60):
        held.append(socket.create_connection((host, int(port))))
        held[-1].sendall(b"GET /timeline HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    page = opened(address)
    page.locator("#sentence").get_by_text(re.compile("Epoch .* of 40")).wait_for()
    assert train.result()["samples"] == 40 * 256
    for each in held:
        each.close()


def test_beyond_this_host_the_page_needs_a_token(
    start: Start, counting: str, tmp_path: Path, opened: Callable[[str], Any]
) -> None:
    refused = start("train", counting, "--page", "0.0.0.0:0", "--run-dir", str(tmp_path / "no"))
    assert refused.ends() == 2
    assert "--page-token-file" in refused.stderr
    tokens = tmp_path / "tokens"
    tokens.write_text("client 0123456789abcdef\n")
    run = str(tmp_path / "run")
    options = "--page", "0.0.0.0:0", "--page-token-file", str(tokens)
    start("train", counting, "--epochs", "1", "--run-dir", run).ends()
    watch = start("watch", run, *options)
    address = watch.says(r"page: (http://\S+)")[1].replace("0.0.0.0", "127.0.0.1")
    with pytest.raises(urllib.error.HTTPError, match="401") as error:
        urllib.request.urlopen(f"{address}timeline")
    error.value.close()
    page = opened(address)
    page.get_by_label("This page needs a token").fill("0123456789abcdef")
    page.get_by_role("button", name="Use token").click()
    page.locator("#sentence").get_by_text("The run is done.").wait_for()


def test_runs_of_a_directory_are_listed_and_compared(
    start: Start, counting: str, tmp_path: Path, opened: Callable[[str], Any]
) -> None:
    for name, seed in (("first", "1"), ("second", "2")):
        run = str(tmp_path / "runs" / name)
        assert (
            start("train", counting, "--epochs", "3", "--seed", seed, "--run-dir", run).ends() == 0
        )
    watch = start("watch", str(tmp_path / "runs"))
    address = watch.says(r"page: (http://\S+)")[1]
    page = opened(address)
    rows = page.locator("#runs tbody tr")
    rows.first.get_by_text("second").wait_for()  # the newest
    for name in ("first", "second"):
        page.get_by_label(f"Compare {name}").check()
        page.locator("#runs tr", has_text=name).locator(".swatch").wait_for()
    page.locator("#runs thead").get_by_text("seed").wait_for()
    assert "epochs" not in page.locator("#runs thead").inner_text()
    page.wait_for_function("document.querySelectorAll('#loss path[d^=M]').length === 2")
    page.get_by_role("link", name="first").press("Enter")
    page.locator("#sentence").get_by_text("The run is done.").wait_for()
    for name in ("..", "%2e%2e%2fruns%2ffirst", "x" * 999):
        with pytest.raises(urllib.error.HTTPError, match="404") as error:
            urllib.request.urlopen(f"{address}timeline?run={name}")
        error.value.close()
    several = start("watch", str(tmp_path / "runs"), "--export", str(tmp_path / "page.html"))
    assert several.ends() == 2
    assert "several runs" in several.stderr


def test_a_lost_host_of_the_server_is_seen_on_the_pages_of_its_standby_and_of_a_watcher(
    start: Start, counting: str, tmp_path: Path, opened: Callable[[str], Any]
) -> None:
    server = start(
        *("train", counting, "--workers", "1", "--run-dir", str(tmp_path / "run"), "--page"),
        *("--listen", "tcp://0.0.0.0:0", "--contact", "127.0.0.1", "--epochs", "100000"),
        *("--takeover-after", "3"),
        prefix=on("first"),
    )
    page = opened(server.says(r"page: (http://\S+)")[1])
    token = server.says(r"(?s)run instead.*?\n\s+echo (\S+) \|")[1]
    copy = tmp_path / "copy"
    joined = "join", token, "--workers", "1", "--trust-recipe", "--run-dir", str(copy)
    standby = start(*joined, "--contact", "127.0.0.1", prefix=on("second"))
    page.locator(".chip.standby", has_text="behind").wait_for()
    elsewhere = start("watch", server.says(r"(?s)of another host.*?echo (\S+) \|")[1])
    watched = opened(elsewhere.says(r"page: (http://\S+)")[1])
    watched.locator(".chip.standby", has_text="behind").wait_for()
    watched.locator("#learning", has_text="Its own host evaluates it").wait_for()
    for process_id in [server.process.pid, *server.child_ids]:
        os.kill(process_id, signal.SIGKILL)
    standby.says("this host continues the run")
    page.get_by_text("The run's command cannot be reached").wait_for()
    watch = start("watch", str(copy))
    after = opened(watch.says(r"page: (http://\S+)")[1])
    after.locator("#events .takeover").first.wait_for()
    after.wait_for_function("document.querySelector('.lane .takeover[d^=M]')")
    after.get_by_text("the server is lost: this host continues the run").wait_for()
    watched.get_by_text("the run continues at tcp://").wait_for()
    watched.wait_for_function("document.querySelector('.lane .takeover[d^=M]')")
    for each in (after, watched) if os.geteuid() == 0 else ():
        each.get_by_text("second took over from first").wait_for()
        each.locator("[data-role=server] h3", has_text="second").wait_for()
    standby.process.send_signal(signal.SIGINT)
    standby.ends()


def test_a_pulled_cable_is_seen_and_the_host_is_seen_to_return(
    start: Start, hosts: Any, counting: str, tmp_path: Path, opened: Callable[[str], Any]
) -> None:
    run = str(tmp_path / "run")
    train = start(
        *("train", counting, "--workers", "1", "--run-dir", run, "--epochs", "100000"),
        *("--listen", "tcp://0.0.0.0:0", "--contact", test_hosts.SERVER),
        prefix=[*hosts.on("server"), *on("desk")],
    )
    token = train.says(r"(?s)of another host.*?echo (\S+) \|")[1]
    joined = "join", token, "--workers", "1", "--trust-recipe"
    start(*joined, prefix=[*hosts.on("worker-0"), *on("laptop")])
    page = opened(start("watch", run).says(r"page: (http://\S+)")[1])
    laptop = page.locator(".host", has_text="laptop").locator(".chip.worker")
    laptop.get_by_text("computing").wait_for()
    link = page.locator(".host", has_text="laptop").locator(".link")
    link.get_by_text(re.compile(r"by network to desk: [1-9].* since it joined")).wait_for()
    hosts.cut_off("worker-0")
    page.get_by_text(re.compile("on laptop was lost: silent for")).wait_for()
    page.wait_for_function("document.querySelector('.fault[d^=M]')")
    page.locator(".chip[data-state=lost]").wait_for()
    hosts.connect("worker-0")
    page.get_by_text("on laptop is back").wait_for()
    laptop.get_by_text("computing").wait_for()
    os.kill(train.children["worker-0"], signal.SIGKILL)  # its successor may join before it is lost
    page.get_by_text(re.compile("worker-0 on desk was lost: ")).wait_for()
    page.locator(".chip[data-state=lost]").wait_for(state="detached")
    page.locator(".host", has_text="desk").locator(".chip", has_text="computing").first.wait_for()


def test_many_workers_are_rows_in_order_and_the_loss_of_a_host_is_one_sentence(
    start: Start, tmp_path: Path, opened: Callable[[str], Any]
) -> None:
    workers = {f"node{host}/worker-{number}": [1, 250.0, 0.1, 0.01, 0.3, False]
               for host in (1, 2) for number in range(100)}  # fmt: skip
    lost = [
        {"at": 1001.0, "what": "lost", "who": who, "text": "silent for 1.6 s"}
        for who in workers
        if who.startswith("node2")
    ]
    facts = {"at": 1000.0, "state": "training", "host": "node1", "samples": 10, "epochs": 2}
    first = facts | {"samples_total": 100, "workers": workers, "worker_count": 200}
    first["leases"] = {who: [[-1.0, 0.0, 0.7, 0.1]] for who in workers}
    (tmp_path / "options.json").write_text("{}")
    lines = first, {"at": 1001.0, "events": lost}
    (tmp_path / "timeline.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    assert start("watch", str(tmp_path), "--export", str(tmp_path / "page.html")).ends() == 0
    page = opened((tmp_path / "page.html").as_uri())
    page.get_by_text("100 workers on node2 were lost: silent for 1.6 s").wait_for()
    assert page.locator("#events li").count() == 1
    rows = page.locator(".lane-row .who").all_inner_texts()
    assert [each.split()[0] for each in rows[-100:]] == [f"worker-{i}" for i in range(100)]
    assert page.locator(".chip[data-state=lost]").count() == 100
