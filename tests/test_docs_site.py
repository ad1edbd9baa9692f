"""The documentation as a site: built strictly, links that lead somewhere, nothing fetched from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from kdbench.methods import REGISTRY
from kdbench.sweeps.suites.files import load_suite

ROOT = Path(__file__).resolve().parents[1]


class Links(HTMLParser):
    """What a page links, and what a browser loads with it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.linked: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "a" and "href" in given:
            self.linked.append(given["href"])
        if tag in ("script", "img", "iframe") and "src" in given:
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loaded.append(given.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=300)
    assert (built.returncode, built.stderr) == (0, "")
    return folder


def test_every_method_has_a_page(site: Path) -> None:
    assert {path.stem for path in (site / "methods").glob("*.html")} == set(REGISTRY)
    assert "<math" in (site / "methods" / "at.html").read_text()


def test_blocks_are_drawn(site: Path) -> None:
    """Code as code, equations as equations."""
    own = [page for page in site.glob("*.html")]
    raw = [page.name for page in own if re.search(r"```|\$\$", page.read_text())]
    assert own and raw == []


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    missing, foreign = [], []
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    for page in pages:
        links = Links(page)
        for link in (*links.linked, *links.loaded):
            parts = urlsplit(link)
            if parts.path == "boards/index.html":  # which kdbench report writes
                continue
            if not parts.scheme and parts.path and not (page.parent / unquote(parts.path)).exists():
                missing.append(f"{page.relative_to(site)}: {link}")
        foreign += [link for link in links.loaded if urlsplit(link).scheme in ("http", "https")]
    assert len(pages) > 40 and (missing, foreign) == ([], [])


def test_the_example_of_an_own_suite_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r'```toml title="flowers.toml"\n(.*?)```', (ROOT / "docs" / "own.md").read_text(), re.DOTALL)
    (tmp_path / "flowers.toml").write_text(text)
    suite = load_suite(str(tmp_path / "flowers.toml"))
    assert suite.methods == ("student", "kd", "at", "dml") and suite.tuning.trials == 6
