"""The page shows the pool as it is: who works, what waits, how quick it is, and what is wrong."""

import re
from datetime import datetime, timedelta
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api").expect


def state(page: Any) -> Any:
    return page.locator("#state")


@pytest.mark.main_path
def test_workers_queue_and_models_are_shown_in_numbers(visit: Any, gateway: Any) -> None:
    gateway.employs("one", host="copper", state="busy", batches=1234, requests=5678)
    gateway.serves(
        "fashion",
        version=2841,
        admitted=1_000,
        answered=990,
        failed=2,
        requests_per_s=1234.5,
        latency_ms={"p50": 0.42, "p90": 12.345, "p99": 1500.0},
        batch_rows={"1": 6, "2": 3, "8": 1},
    )
    page = visit().page
    row = page.get_by_role("row", name="one")
    expect(row.get_by_role("cell").nth(0)).to_have_text("busy")
    expect(row).to_contain_text("copper · 7")
    expect(row.locator(".requests")).to_have_text("5,678")
    expect(row.locator(".batches")).to_have_text("1,234")
    expect(row.locator(".heard")).to_have_text("just now")
    expect(page.locator("#queue")).to_contain_text("3 of 1,024")
    expect(page.locator("#queue")).to_contain_text("2 MiB of 256 MiB")
    assert page.get_by_label("Requests in the queue").evaluate("m => [m.value, m.max]") == [3, 1024]
    expect(page.locator("#since")).to_have_text("; up 2 h 1 min")
    card = page.get_by_role("article")
    expect(card.get_by_role("heading")).to_have_text("fashion version 2841 ready")
    expect(card.locator(".rate .now")).to_have_text("1,235 per second")
    expect(card.locator(".latency .now")).to_have_text("0.42 ms median")
    expect(card.locator(".percentiles")).to_have_text("90 % in 12.3 ms, 99 % in 1.50 s")
    expect(card.locator(".batches .now")).to_have_text("2.0 mean")
    columns = card.get_by_role("listitem").all_text_contents()
    assert columns[:2] == ["1: 6 batches", "2: 3 batches"]
    assert columns[-1] == "8: 1 batches"
    counts = dict(text.split("\n") for text in card.locator(".counts div").all_inner_texts())
    assert counts == {
        "admitted": "1,000",
        "answered": "990",
        "refused": "0",
        "expired": "0",
        "failed": "2",
        "cancelled": "0",
    }


def test_it_follows_the_pool(visit: Any, gateway: Any) -> None:
    page = visit().page
    names = page.locator("#workers .name")
    expect(names).to_have_text(["one", "two"])
    gateway.pool["workers"].pop(0)
    gateway.employs("three", state="silent", heard_s_ago=75.0)
    gateway.serves("fashion", version=2)
    expect(names).to_have_text(["two", "three"])
    expect(page.get_by_role("row", name="three")).to_contain_text("1 min 15 s ago")
    expect(page.get_by_role("article")).to_contain_text("version 2")


def test_what_is_shown_is_touched_only_where_it_changes(visit: Any, gateway: Any) -> None:
    page = visit().page
    row = page.get_by_role("row", name="two").element_handle()
    name = page.locator("#workers .name").first.evaluate_handle("element => element.firstChild")
    gateway.employs("three")
    expect(page.locator("#workers .name")).to_have_text(["one", "two", "three"])
    assert row.evaluate("row => row.isConnected")
    assert name.evaluate("text => text.isConnected")


def test_a_minute_is_kept_and_drawn(visit: Any, gateway: Any) -> None:
    page = visit().page
    page.clock.install()
    page.clock.pause_at(datetime.now() + timedelta(minutes=1))  # then only this test makes it pass
    row = page.get_by_role("row", name="one")
    for second in range(5):
        gateway.employs("one", batches=1 + 10 * second)
        gateway.serves(
            "fashion",
            answered=100 * second,
            refused=50 * max(0, second - 2),
            latency_ms={"p50": 1.0, "p90": 2.0, "p99": 8.0},
            batch_rows={"2": 5 * second},
        )
        if second == 0:
            page.reload()
        else:
            page.clock.run_for(1000)
        expect(row.locator(".batches")).to_have_text(str(1 + 10 * second))  # and asks again in 1 s
    expect(row.locator("path.answered")).to_have_attribute(
        "d", re.compile(r"^(M[\d.]+ 100V[\d.]+h\.76V100Z){4}$")
    )
    card = page.get_by_role("article")
    expect(card.locator(".rate path.area")).to_have_attribute("d", re.compile("^M.*Z$"))
    expect(card.locator(".rate path.refused")).to_have_attribute("d", re.compile("^M"))
    expect(card.locator(".refusals")).to_have_text(re.compile(r"^\d+(\.\d+)?/s$"))
    expect(card.locator(".latency path.outer")).to_have_attribute("d", re.compile("^M.*Z$"))
    scale = card.locator(".latency .plot").evaluate("({dataset}) => [dataset.bottom, dataset.top]")
    assert scale == ["1 ms", "10 ms"]


def test_names_are_text_and_nothing_else(visit: Any, gateway: Any) -> None:
    name = '<img src="x" onerror="document.title=1">'
    gateway.employs(name)
    gateway.serves(name, is_ready=False, reason=name, labels=[name])
    page = visit().page
    expect(page.locator("#workers .name").last).to_have_text(name)
    expect(page.locator(".reason").last).to_have_text(name)
    assert page.title() == "dist_net · inference pool"


def test_a_pool_that_is_not_ready_says_which_model_and_why(visit: Any, gateway: Any) -> None:
    gateway.pool["is_ready"] = False
    gateway.serves("slow", version=None, is_ready=False, reason="reading its weights")
    page = visit().page
    expect(state(page)).to_have_text("Not ready: slow")
    expect(page.get_by_role("article").last).to_contain_text("reading its weights")
    gateway.pool["is_ready"] = True
    gateway.serves("slow")
    expect(state(page)).to_have_text("Ready")
    expect(page.get_by_text("reading its weights")).to_have_count(0)


def test_a_pool_without_workers_says_so(visit: Any, gateway: Any) -> None:
    gateway.pool |= {"is_ready": False, "workers": []}
    page = visit().page
    expect(state(page)).to_have_text("Not ready: no worker")
    expect(page.get_by_text("No workers. The gateway waits for one to join.")).to_be_visible()
    expect(page.get_by_role("table")).to_be_hidden()


def test_a_pool_that_drains_says_so(visit: Any, gateway: Any) -> None:
    gateway.pool |= {"is_ready": False, "is_draining": True}
    expect(state(visit().page)).to_have_text(re.compile("^Draining"))


def test_a_gateway_that_goes_and_comes_back(visit: Any) -> None:
    page = visit().page
    expect(state(page)).to_have_text("Ready")
    page.context.set_offline(True)
    expect(state(page)).to_have_text(
        re.compile(r"^Gateway unreachable, last seen at \d\d:\d\d:\d\d$")
    )
    expect(page.get_by_role("row", name="one")).to_be_visible()
    page.context.set_offline(False)
    expect(state(page)).to_have_text("Ready")


def test_a_token_is_asked_for_and_used_for_everything(visit: Any, gateway: Any) -> None:
    gateway.token = "a secret"
    page = visit().page
    field = page.get_by_label("This pool needs a token.")
    field.fill("a guess")
    field.press("Enter")
    expect(page.get_by_text("That token was refused.")).to_be_visible()
    expect(page.get_by_role("row", name="one")).to_be_hidden()
    field.fill("a secret")
    page.get_by_role("button", name="Use token").click()
    expect(state(page)).to_have_text("Ready")
    expect(field).to_be_hidden()
    with page.expect_response(re.compile("classify")):
        page.get_by_role("button", name="A bag").click()
    assert gateway.requests[0][1]["Authorization"] == "Bearer a secret"
    page.reload()
    expect(state(page)).to_have_text("Ready")


@pytest.mark.parametrize("token", ["", "a secret"])
def test_a_link_leads_on_with_and_without_a_token(visit: Any, gateway: Any, token: str) -> None:
    gateway.token = token
    page = visit().page
    if token:
        page.get_by_label("This pool needs a token.").fill(token)
        page.get_by_role("button", name="Use token").click()
    expect(state(page)).to_have_text("Ready")
    page.get_by_role("link", name="metrics").click()
    expect(page.get_by_text("dist_net_ready 1.0")).to_be_visible()
    page.go_back()
    expect(state(page)).to_have_text("Ready")


def test_a_link_that_needs_a_token_asks_for_it(visit: Any, gateway: Any) -> None:
    gateway.token = "a secret"
    page = visit().page
    expect(page.get_by_label("This pool needs a token.")).to_be_visible()
    page.get_by_role("link", name="metrics").click()
    expect(page.get_by_label("This pool needs a token.")).to_be_visible()
    assert page.url == gateway.address


WRITTEN = {
    "milliseconds(0.4249)": "0.42 ms",
    "milliseconds(999.4)": "999 ms",
    "milliseconds(12345)": "12.3 s",
    "milliseconds(null)": "\N{EN DASH}",
    "percent(1)": "100.0 %",
    "percent(0)": "0.0 %",
    "percent(0.0004)": "< 0.1 %",
    "bytes(1023)": "1023 B",
    "bytes(1536)": "1.5 KiB",
    "bytes(5 * 2 ** 40)": "5120 GiB",
    "duration(0.4)": "0 s",
    "duration(59.9)": "59 s",
    "duration(3600)": "1 h",
    "duration(97000)": "1 d 2 h",
    "perSecond(7.256)": "7.26",
    "perSecond(12345.6)": "12,346",
}


def test_numbers_are_written_as_people_read_them(visit: Any) -> None:
    page = visit().page
    words = [page.evaluate(f"import('/words.js').then(words => words.{call})") for call in WRITTEN]
    assert dict(zip(WRITTEN, words, strict=True)) == WRITTEN
