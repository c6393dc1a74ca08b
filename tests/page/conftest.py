"""A router under watch, and pages that notice everything that a user should not have to."""

import hashlib
import os
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.e2e.router_process import ANSWER_DEADLINE_S, router
from tests.page.browser import chromium
from tests.page.fetched import CACHE, npm

LANES = "lanes: {interactive: {max_active: 2, queue_timeout: 10m}, throughput: {max_active: 8, queue_timeout: 10m}}\n"
KEY = "opta-of-the-tests"
SCREENSHOTS = CACHE / "screenshots"
SIZES = {"wide": (1440, 900), "phone": (390, 844)}
WAIT_MS = 60_000
LOADED = 14, 3  # agents, people

expect.set_options(timeout=WAIT_MS)


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.page)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """The embedded pair, open to whoever is on this machine."""
    with router(tmp_path_factory.mktemp("page"), LANES) as running:
        yield running


@pytest.fixture(scope="session")
def guarded(tmp_path_factory):
    """One that has an admin key."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    echo = 'models: [{name: echo, target: "scripted:tokens_per_step=1,step_s=0.01", preload: true}]\n'
    with router(tmp_path_factory.mktemp("guarded"), f"server: {{admin_key_sha256: {digest}}}\n{echo}") as running:
        yield running


@pytest.fixture(scope="session")
def axe():
    """The source of axe-core, which finds what keeps people from using a page."""
    return (npm("axe-core", "4.10.3") / "axe.min.js").read_text("utf-8")


@pytest.fixture
def open_page(browser):
    """Opens a router's page; at the end, nothing may have been logged as an error, nor asked of any other host."""
    contexts, complaints = [], []

    def opened(running, size="wide", forgiven=(), **settings):
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: foreign(request.url, running, complaints))

        def logged(message):
            if message.type in ("error", "warning") and not any(text in message.text for text in forgiven):
                complaints.append(message.text)

        page.on("console", logged)
        page.goto(running.url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def foreign(url, running, complaints):
    if not url.startswith(f"{running.url}/"):
        complaints.append(f"a request to {url}")


@contextmanager
def load(running):
    """Agents and people who ask until the block ends."""
    stop = threading.Event()

    def ask(lane, number):
        agent = {"x-opta-lane": lane, "x-client-id": f"{'person' if lane == 'interactive' else 'agent'}-{number % 4}"}
        body = {
            "model": "opta-tiny",
            "prompt": f"class Reader{number}:\n    def read(self, path):\n",
            "max_tokens": 120,
            "temperature": 0,
            "stream": True,
        }
        with httpx.Client(base_url=running.url, timeout=ANSWER_DEADLINE_S, trust_env=False) as client:
            while not stop.is_set():
                with client.stream("POST", "/v1/completions", json=body, headers=agent) as answer:
                    if answer.status_code != httpx.codes.OK:
                        stop.wait(float(answer.headers["retry-after"]))
                    for _ in answer.iter_bytes():
                        if stop.is_set():
                            break

    agents, people = LOADED
    threads = [threading.Thread(target=ask, args=("throughput", number)) for number in range(agents)]
    threads += [threading.Thread(target=ask, args=("interactive", number)) for number in range(people)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(ANSWER_DEADLINE_S)


def kill_engine(running):
    """As the system does when memory is short."""
    os.kill(running.get("/admin/status").json()["engine"]["pid"], 9)


def screenshot(page, name):
    """Keep what the page looks like, for whoever wants to see it."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
