"""The page is for everybody: by keyboard, by ear, on a small screen, in light and in dark."""

from collections.abc import Callable
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api").expect

# Texts whose contrast with what is behind them is less than WCAG 2.2 asks for (1.4.3, level AA).
FAINT_TEXTS = """() => {
    const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = color;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const luminance = ([r, g, b]) => [r, g, b].map((value) => value / 255)
        .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (element) => {
        for (let each = element; each; each = each.parentElement) {
            const color = rgba(getComputedStyle(each).backgroundColor);
            if (color[3] === 255) return color;
        }
        return [255, 255, 255, 255];
    };
    const contrast = (element) => {
        const [dark, light] = [getComputedStyle(element).color].map(rgba).concat([ground(element)])
            .map(luminance).sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    };
    return [...document.querySelectorAll("body *:not(script, template, option)")]
        .filter((element) => element.checkVisibility() && !element.matches(":disabled")
            && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
        .filter((element) => contrast(element) < 4.5)
        .map((element) => `${element.textContent}: ${contrast(element).toFixed(2)}`);
}"""


def ready(_: Any) -> None:
    """A pool where all is well."""


def in_trouble(gateway: Any) -> None:
    """A pool that shows everything that can go wrong, in words as long as they come."""
    gateway.pool["is_ready"] = False
    gateway.pool["queue"] |= {"requests": 1024, "bytes": 200 << 20}
    gateway.employs("a-worker-with-a-rather-long-name.example", state="silent", requests=10**9)
    gateway.employs("loads", state="loading", host="h" * 60)
    trouble = dict.fromkeys(("refused", "expired", "failed", "cancelled"), 10**9)
    gateway.serves("m" * 60, is_ready=False, reason="r" * 90, classes=1000, **trouble)
    gateway.refuse(503, "e" * 200, Retry_After="3")


def unsure(gateway: Any) -> None:
    """A pool whose model has samples of its own, and does not know what one shows."""
    gateway.offers("fashion", "A bag", "m" * 60)
    gateway.reply |= {"unknown": True, "unknown_below": 0.875}


def locked(gateway: Any) -> None:
    """A pool that wants a token."""
    gateway.token = "a secret"


STATES = pytest.mark.parametrize("put", [ready, in_trouble, unsure, locked])


def opened(visit: Any, put: Callable[[Any], None], **options: Any) -> Any:
    """The page once it shows the pool and what came of an image, without transitions."""
    page = visit(reduced_motion="reduce", **options).page
    expect(page.locator("#state")).not_to_have_text("Connecting…")
    if put is unsure:
        expect(page.get_by_role("group", name="the model was made from")).to_be_visible()
    page.get_by_role("button", name="A bag").click()
    if put is locked:  # the image waits until the models are known
        expect(page.locator("#preview")).to_be_visible()
        return page
    shown = page.get_by_role("alert") if put is in_trouble else page.locator("#verdict")
    expect(shown).not_to_be_empty()
    if put is not in_trouble:
        page.get_by_text("Send this request without the page").click()
    return page


@STATES
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(
    visit: Any, gateway: Any, put: Callable[[Any], None], scheme: str
) -> None:
    put(gateway)
    page = opened(visit, put, color_scheme=scheme)
    assert page.evaluate(FAINT_TEXTS) == []


def test_light_and_dark_differ(visit: Any) -> None:
    grounds = {
        visit(color_scheme=scheme).page.evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert len(grounds) == 2


@STATES
def test_nothing_is_cut_off_on_the_narrowest_phone(
    visit: Any, gateway: Any, put: Callable[[Any], None]
) -> None:
    put(gateway)
    page = opened(visit, put, viewport={"width": 320, "height": 640})
    beyond = page.evaluate(
        "() => [...document.querySelectorAll('body *')].filter((element) =>"
        " element.checkVisibility() && element.getBoundingClientRect().right > 320.5"
        " && !element.closest('svg, thead, .columns span, pre > *'))"
        ".map((element) => element.outerHTML.slice(0, 90))"
    )
    assert beyond == []
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_the_keyboard_is_enough(visit: Any, gateway: Any) -> None:
    gateway.serves("another")
    page = visit().page
    expect(page.get_by_label("Model")).to_be_visible()
    focused = []
    for _ in range(6):
        page.keyboard.press("Tab")
        focused.append(
            page.evaluate(
                "() => { const at = document.activeElement;"
                " return [at.id || at.firstElementChild?.alt, getComputedStyle("
                "at.closest('#drop') ?? at).outlineStyle]; }"
            )
        )
    names = [name for name, _ in focused]
    assert names[:3] == ["model", "image", "A T-shirt, in grey"]
    assert names[-2:] == ["A bag, in grey", "submit"]
    assert {outline for _, outline in focused} <= {"solid", "auto"}
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_contain_text("Bag")


def test_it_is_told_apart_by_ear(visit: Any) -> None:
    page = opened(visit, ready)
    for landmark in ("banner", "main", "contentinfo"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    for region in ("What does the image show?", "The pool"):
        expect(page.get_by_role("region", name=region)).to_be_visible()
    levels = page.get_by_role("heading").evaluate_all("all => all.map(each => +each.tagName[1])")
    assert levels == [1, 2, 2, 3, 3]
    expect(page.get_by_role("table", name="Workers").get_by_role("columnheader")).to_have_count(6)
    expect(page.get_by_role("meter", name="Coat")).to_be_visible()
    # Announced: the state of the pool, an answer, a problem, a label; not what changes often.
    live = page.locator("[role=status], [role=alert], output, [aria-live]")
    assert live.evaluate_all("all => all.map(each => each.id)") == [
        "state",
        "problem",
        "verdict",
        "taught",
    ]


def test_nothing_moves_for_those_who_asked_for_rest(visit: Any) -> None:
    moving = (
        "() => [...document.querySelectorAll('*')].filter((element) =>"
        " parseFloat(getComputedStyle(element).transitionDuration) > 0).length"
    )
    assert visit(reduced_motion="no-preference").page.evaluate(moving) > 0
    assert visit(reduced_motion="reduce").page.evaluate(moving) == 0
