"""The live page in a real browser, on a real router that serves the embedded pair."""

import re

import httpx
import pytest
from playwright.sync_api import expect

from tests.e2e.router_process import router
from tests.page.conftest import KEY, SIZES, kill_engine, load, screenshot

EVERY_LOOK = [(size, theme) for size in SIZES for theme in ("light", "dark")]
LOOKS = pytest.mark.parametrize(("size", "theme"), EVERY_LOOK, ids=[f"{size}-{theme}" for size, theme in EVERY_LOOK])
READY = re.compile(r"^Ready\.")


def connected(page):
    expect(page.locator("#status-text")).to_have_text(READY)


def weights(running):
    return tuple(lane["weight"] for lane in running.get("/admin/lanes").json().values())


def set_weight(running, lane, weight):
    answer = httpx.patch(f"{running.url}/admin/lanes/{lane}", json={"weight": weight}, trust_env=False)
    assert answer.status_code == 200


def accessible(page, axe):
    """No violation that axe-core calls serious or critical; contrast, names and roles are among its rules."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations)")
    bad = [
        (violation["id"], [node["target"] for node in violation["nodes"]])
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]
    assert bad == []


def fits(page):
    """Nothing makes the page wider than the screen."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@LOOKS
def test_idle_it_is_whole_and_readable_by_everyone(open_page, service, axe, size, theme):
    page = open_page(service, size, color_scheme=theme)
    expect(page.locator("#status-text")).to_have_text("Ready. Nothing is running.")
    expect(page.locator("#models .state")).to_have_text("loaded")
    accessible(page, axe)
    fits(page)
    screenshot(page, f"idle-{size}-{theme}")


@LOOKS
def test_under_load_requests_are_seen_to_wait_and_to_run(open_page, service, axe, size, theme):
    page = open_page(service, size, color_scheme=theme)
    connected(page)
    with load(service):
        expect(page.locator("#lane-throughput .slot")).to_have_count(8)
        expect(page.locator("#lane-interactive .slot.decode .words").first).to_contain_text("tokens")
        expect(page.locator("#lane-throughput .dot")).not_to_have_count(0)
        expect(page.locator("#share-interactive")).to_contain_text("%")
        page.locator("#requests .entry.finished .open").first.click()
        expect(page.locator(".timeline .moments")).to_contain_text("first token")
        accessible(page, axe)
        fits(page)
        screenshot(page, f"load-{size}-{theme}")
    expect(page.locator("#status-text")).to_have_text("Ready. Nothing is running.")
    expect(page.locator(".request")).to_have_count(0)


@LOOKS
def test_while_the_engine_is_restarted_the_page_says_so_and_who_waits_for_it(open_page, service, axe, size, theme):
    page = open_page(service, size, color_scheme=theme)
    connected(page)
    with load(service):
        expect(page.locator("#lane-interactive .slot.decode").first).to_be_visible()
        kill_engine(service)
        expect(page.locator("#status-text")).to_contain_text(
            "The engine is being restarted: the host was ended by SIGKILL"
        )
        expect(page.locator(".slot.waiting_for_engine").first).to_be_visible()
        accessible(page, axe)
        fits(page)
        screenshot(page, f"restart-{size}-{theme}")
        expect(page.locator("#announced")).to_contain_text("being restarted")
        connected(page)
        expect(page.locator(".slot.decode").first).to_be_visible()
    expect(page.locator("#status-text")).to_have_text("Ready. Nothing is running.")


def test_the_slider_changes_the_weights_and_follows_those_that_others_set(open_page, service):
    set_weight(service, "interactive", 8)
    set_weight(service, "throughput", 1)
    page, other = open_page(service), open_page(service)
    words = "weights 8 : 1: 89% of the device for the interactive lane while both have work."
    expect(page.locator("#weight-words")).to_have_text(words)
    slider = page.locator("#weight")
    slider.focus()
    for _ in range(9):
        slider.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", "weights 4 : 1, 80% for the interactive lane")
    expect(other.locator("#weight-words")).to_contain_text("weights 4 : 1")
    assert weights(service) == (4, 1)
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2)
    expect(other.locator("#weight-words")).to_contain_text("weights 1 : 4")
    assert weights(service) == (1, 4)
    set_weight(service, "interactive", 8)
    set_weight(service, "throughput", 1)
    expect(page.locator("#weight-words")).to_have_text(words)
    assert abs(float(slider.input_value()) - 1000 * 8 / 9) <= 5


def newest(page):
    """The number of the last request that is in the table; 0 if there is none."""
    rows = page.locator("#requests .open").all()
    return max((int(row.get_attribute("aria-controls").removeprefix("request-")) for row in rows), default=0)


def test_a_prompt_is_answered_in_both_lanes_and_what_was_drafted_is_marked(open_page, service):
    page = open_page(service)
    connected(page)
    # Other tests' load may have shut the pair's gate; a load of the model opens it.
    assert service.post("/admin/models/opta-tiny/load", {}).status_code == 200
    before = newest(page)
    page.fill("#prompt", "def add(a, b):\n")
    page.fill("#try-tokens", "48")
    page.click("text=Run in both lanes")
    panes = {lane: page.locator(f".answer[data-lane={lane}]") for lane in ("interactive", "throughput")}
    expect(panes["interactive"].locator("[data-words]")).to_contain_text("48 tokens at")
    expect(panes["throughput"].locator("[data-words]")).to_contain_text("this lane does not draft")
    expect(page.locator("#try-said")).to_contain_text("interactive: first token")
    body = {"model": "opta-tiny", "prompt": "def add(a, b):\n", "max_tokens": 48, "temperature": 0}
    plain = service.post("/v1/completions", {**body, "num_draft_tokens": 0}).json()["choices"][0]["text"]
    # Greedy: the same text in both lanes, with drafts and without, whichever way it was cut and marked.
    assert panes["interactive"].locator("pre").text_content() == plain
    assert panes["throughput"].locator("pre").text_content() == plain
    drafted = "".join(panes["interactive"].locator("mark").all_text_contents())
    assert 0 < len(drafted) < len(plain)
    expect(panes["throughput"].locator("mark")).to_have_count(0)
    expect(page.locator(f"#request-{before + 3}")).to_be_attached()
    assert newest(page) == before + 3
    expect(page.locator("#gauges .number")).to_contain_text("%")


def test_an_answer_can_be_stopped(open_page, service):
    page = open_page(service)
    connected(page)
    page.fill("#try-tokens", "2000")
    page.click("#try .actions button[value=interactive]")
    expect(page.locator("#lane-interactive .slot.decode")).to_have_count(1)
    page.click("#try-stop")
    expect(page.locator(".answer.interactive [data-words]")).to_have_text("stopped")
    expect(page.locator("#lane-interactive .slot")).to_have_count(0)
    expect(page.locator("#requests .entry").first).to_contain_text("cancelled")


def test_a_request_opens_into_its_time_line_by_keyboard_alone(open_page, service):
    service.post("/v1/completions", {"model": "opta-tiny", "prompt": "x = ", "max_tokens": 4}, x_request_id="req-line")
    page = open_page(service)
    button = page.locator("#requests .open").first
    button.focus()
    button.press("Enter")
    expect(button).to_have_attribute("aria-expanded", "true")
    details = page.locator(".details:not([hidden])")
    expect(details).to_contain_text("req-line")
    expect(details.locator(".moments li")).to_have_count(6)
    assert details.locator(".line i.decode").count() == 1
    button.press("Enter")
    expect(details).to_have_count(0)


STRETCHES = """entry => import("/live/timeline.js").then((module) => module.stretches(entry))"""
WRITTEN = """([text, drafted]) => import("/live/prompt.js").then((module) => {
  const out = document.createElement("pre");
  module.write(out, text, drafted);
  return [out.textContent, [...out.querySelectorAll("mark")].map((mark) => mark.textContent)];
})"""


def test_a_time_line_shows_a_pause_as_a_pause_and_a_move_as_a_move(open_page, guarded):
    moments = [
        ("queued", 1, None),
        ("admitted", 5, "interactive"),
        ("dispatched", 5, None),
        ("first_token", 25, None),
        ("interrupted", 40, None),
        ("resumed", 60, None),
        ("demoted", 80, "throughput"),
    ]
    told = [{"name": name, "at_ms": at_ms, "lane": lane, "tokens": 3} for name, at_ms, lane in moments]
    page = open_page(guarded, forgiven=("401",))
    assert page.evaluate(STRETCHES, {"lane": "interactive", "duration_ms": 100, "moments": told}) == [
        ["wait", "interactive", 0, 5],
        ["prefill", "interactive", 5, 25],
        ["decode", "interactive", 25, 40],
        ["lost", "interactive", 40, 60],
        ["decode", "interactive", 60, 80],
        ["decode", "throughput", 80, 100],
    ]


def test_what_is_marked_is_counted_in_code_points(open_page, guarded):
    page = open_page(guarded, forgiven=("401",))
    assert page.evaluate(WRITTEN, ["a\U0001f980b\u00e9c", [[1, 2], [3, 5]]]) == [
        "a\U0001f980b\u00e9c",
        ["\U0001f980", "\u00e9c"],
    ]


def test_what_can_be_used_can_be_reached_with_the_tab_key(open_page, service):
    page = open_page(service)
    connected(page)
    reached = []
    for _ in range(24):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.value || ''"))
    order = [
        "keys-open",
        "theme-toggle",
        "weight",
        "prompt",
        "try-model",
        "try-kind",
        "try-tokens",
        "both",
        "interactive",
    ]
    assert [name for name in reached if name in order][: len(order)] == order


def test_the_theme_is_the_systems_until_somebody_chooses_one_and_is_kept(open_page, service):
    page = open_page(service, color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    toggle = page.locator("#theme-toggle")
    expect(toggle).to_have_accessible_name("Colours: as the system")
    toggle.click()
    expect(toggle).to_have_accessible_name("Colours: light")
    light = page.evaluate(paper)
    assert light != dark
    page.reload()
    expect(toggle).to_have_accessible_name("Colours: light")
    assert page.evaluate(paper) == light
    toggle.click()
    assert page.evaluate(paper) == dark


def test_nothing_moves_for_who_wants_no_motion(open_page, service):
    page = open_page(service, reduced_motion="reduce")
    connected(page)
    page.evaluate("() => { window.moved = 0; Element.prototype.animate = () => { window.moved += 1; }; }")
    with load(service):
        expect(page.locator("#lane-throughput .slot")).to_have_count(8)
        assert page.evaluate("document.getAnimations().length") == 0
    assert page.evaluate("window.moved") == 0


def test_with_an_admin_key_the_page_asks_for_it_and_then_works(open_page, guarded, axe):
    page = open_page(guarded, forgiven=("401",))
    expect(page.locator("#keys")).to_be_visible()
    accessible(page, axe)
    expect(page.locator("#weight")).to_be_disabled()
    page.fill("#admin-key", "not the key")
    page.click("text=Use them")
    expect(page.locator("#notice")).to_have_text("This is not the admin key.")
    page.fill("#admin-key", KEY)
    page.keyboard.press("Enter")
    connected(page)
    expect(page.locator("#notice")).to_be_hidden()
    page.locator("#weight").focus()
    page.keyboard.press("Home")
    expect(page.locator("#weight-words")).to_contain_text("weights 1 : 64")
    granted = guarded.get("/admin/lanes", authorization=f"Bearer {KEY}").json()
    assert (granted["interactive"]["weight"], granted["throughput"]["weight"]) == (1, 64)


def test_a_router_that_has_gone_is_said_to_be_gone(open_page, tmp_path):
    echo = 'models: [{name: echo, target: "scripted:tokens_per_step=1,step_s=0.01", preload: true}]\n'
    with router(tmp_path, echo) as running:
        page = open_page(running, forgiven=("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING"))
        connected(page)
        assert running.end() == 0
        expect(page.locator("#status-text")).to_contain_text("Not connected")
