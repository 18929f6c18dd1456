"""The system's Chromium, driven by Playwright; nothing off this machine may be asked for."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(
    scope="module"
)  # playwright's event loop must end before tests that have one of their own
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=chromium,
            headless=True,
            args=[
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--disable-background-networking",
            ],
        )
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """A page that records its errors and every request that leaves this machine, which is refused."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.errors, page.foreign = [], []

    def check(route):
        url = route.request.url
        if url.startswith(("http://127.0.0.1", "http://localhost", "file:", "data:", "blob:")):
            route.continue_()
        else:
            page.foreign.append(url)
            route.abort()

    page.route("**/*", check)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    yield page
    context.close()
