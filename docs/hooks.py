"""What the documentation's site has besides this folder: a page for each method, the pages of results, equations."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from kdbench.results.pages.methods import methods_document
from kdbench.results.pages.report import render
from kdbench.results.site.render import equation
from kdbench.sweeps.cli.registry import all_facts

ROOT = Path(__file__).resolve().parents[1]
SHOWN = (".md", ".png", ".csv", ".tex", ".json")
"""Endings of the files of results that pages show or link."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the methods, from the registry, and the pages of results with what they link, under their own paths."""
    for facts in all_facts():
        text = render(methods_document([facts], introduced=False), "markdown")
        files.append(File.generated(config, f"methods/{facts.id}.md", content=text.replace("## ", "# ", 1)))
    for path in sorted((ROOT / "results").rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in SHOWN and (path.suffix == ".md" or "evidence" not in name):
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


EQUATION = re.compile(r"```math\n(?P<block>.*?)```|\$\$(?P<line>.*?)\$\$|(?<!\w)\$(?P<word>[^$\n]+)\$", re.DOTALL)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Sets equations; has links between this folder and results, which lie beside each other, stay within the site."""
    markdown = EQUATION.sub(_set, markdown)
    up, name = "../" * page.file.src_uri.count("/"), page.file.src_uri
    if name.startswith("results/"):
        return markdown.replace(f"]({up}docs/", f"]({up}")
    return markdown.replace("](../results/", "](results/") if "/" not in name else markdown


def _set(found: re.Match[str]) -> str:
    """An equation as MathML, which browsers draw by themselves."""
    if word := found["word"]:
        return str(equation(word)).replace('display="block"', 'display="inline"')
    return f"\n{equation(found['block'] or found['line'])}\n"
