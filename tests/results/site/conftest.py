"""A site of the committed evidence, and a browser that opens it from disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from playwright.sync_api import Browser, Page, sync_playwright

from tests.sweeps.commands import kdbench

EVIDENCE = Path(__file__).resolve().parents[3] / "results" / "evidence" / "digits"
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def digits_site(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The site of digits, made once for all test processes."""
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent
    with FileLock(root / "site.lock"):
        if not (root / "site" / "index.html").exists():
            code, _, err = kdbench("report", "digits", "--store", str(EVIDENCE), "--out", str(root / "site"))
            assert code == 0, err
    return root / "site"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of the machine."""
    if not (path := shutil.which("chromium")):
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield opened
        opened.close()


class Watched:
    """A page, and what it says and asks for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        """Errors and warnings of the console."""
        self.asked: list[str] = []
        """Addresses that are no file of this machine."""
        page.on("console", lambda each: self.said.append(each.text) if each.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on(
            "request", lambda each: None if each.url.startswith(("file:", "data:")) else self.asked.append(each.url)
        )

    def open(self, path: Path, state: str = "", drawn: bool = False) -> Page:
        """Opens a file, with every chart of it drawn if so asked."""
        self.page.goto(f"{path.as_uri()}{state}")
        for figure in self.page.locator("figure.plot").all() if drawn else ():
            if figure.is_visible():
                figure.scroll_into_view_if_needed()
                figure.locator(".chart[data-drawn] svg").wait_for()
        return self.page


@pytest.fixture
def watched(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """A page of the size and the colours that a test asks for, as (1400, "light")."""
    width, scheme = getattr(request, "param", (1400, "light"))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(120_000)
    yield Watched(context.new_page())
    context.close()
