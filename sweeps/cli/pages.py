"""Makes committed pages again from committed evidence: python -m kdbench.sweeps.cli.pages, or make pages.

A page is markdown in which a comment names the command whose output follows it, up to the next comment "end":

    <!-- kdbench leaderboard digits --format markdown --store results/evidence/digits -->
    <!-- end -->

and one like <!-- digits.csv: kdbench leaderboard digits --format csv --store results/evidence/digits --> is of a file
beside it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from kdbench.bench.atomic import write
from kdbench.results.store.plan import SweepPlan
from kdbench.sweeps.cli import app
from kdbench.sweeps.cli.common import opened
from kdbench.sweeps.scheduling.selection import best_settings

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(<!-- kdbench ([^\n]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
FILE = re.compile(r"^<!-- (\S+): kdbench ([^\n]+) -->$", re.MULTILINE)


def pages() -> list[Path]:
    """The pages of the repository that have something to make again."""
    found = [ROOT / "README.md", *sorted((ROOT / "results").rglob("*.md"))]
    return [page for page in found if BLOCK.search(text := page.read_text()) or FILE.search(text)]


def remade(page: Path) -> Iterator[tuple[Path, str]]:
    """The files beside a page that it names, as their commands make them now, then the page; each with its path."""
    text = page.read_text()
    for name, command in FILE.findall(text):
        yield page.parent / name, output(command)
    yield page, BLOCK.sub(lambda found: f"{found[1]}{output(found[2])}{found[3]}", text)


def output(command: str) -> str:
    """What a command of kdbench prints; the folder that it names is looked for in the repository.

    Raises:
        Exception: that the command raised.
    """
    words = [str(ROOT / word) if "/" in word else word for word in shlex.split(command)]
    result = CliRunner().invoke(app, words)
    if result.exception:
        raise result.exception
    return result.stdout


def warm_starts() -> Iterator[tuple[Path, str]]:
    """What evidence of long tunings has found, each with the path where suites find it."""
    folder = ROOT / "sweeps" / "suites" / "warm"
    for path in sorted(folder.glob("*.json")):
        store = opened(ROOT / "results" / "evidence" / path.stem)
        found = best_settings(SweepPlan.find(store.root, path.stem), store)
        yield path, json.dumps(found, indent=1) + "\n"


def main() -> None:
    """Writes every page anew that is not as its commands make it."""
    for made in (warm_starts(), *map(remade, pages())):
        for path, text in made:
            if not path.exists() or path.read_text() != text:
                write(path, text.encode())
                print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
