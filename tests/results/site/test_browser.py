"""The site in a real browser: it sorts, filters and links, by mouse and by keyboard, and asks nobody for anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.results.site.conftest import Watched

WIDE, DARK, PHONE = (1400, "light"), (1400, "dark"), (390, "light")
BOARD, CARD, INDEX = "digits/index.html", "digits/kd.html", "index.html"
VIEWS = [
    *((BOARD, PHONE), (CARD, DARK)),
    *(
        pytest.param(*each, marks=pytest.mark.slow)
        for each in ((BOARD, WIDE), (BOARD, DARK), (CARD, PHONE), (INDEX, PHONE))
    ),
]


def shown(page: Page, column: int = 0) -> list[str]:
    """The texts of a column's visible cells, in order."""
    return page.locator("#rows tbody tr:visible").evaluate_all(
        "(rows, column) => rows.map(row => row.cells[column].textContent)", column
    )


def values(page: Page, key: str) -> list[float]:
    """The numbers of a column, by its key, in the order of its cells that have one."""
    keys = page.locator("#rows thead th").evaluate_all("heads => heads.map(head => head.dataset.key)")
    cells = page.locator(f"#rows tbody tr td:nth-child({keys.index(key) + 1})[data-v]")
    return [float(each) for each in cells.evaluate_all("cells => cells.map(cell => cell.dataset.v)")]


@pytest.mark.parametrize(("name", "watched"), VIEWS, indirect=["watched"], ids=str)
def test_page_is_accessible_fits_and_asks_nobody(watched: Watched, digits_site: Path, name: str) -> None:
    page = watched.open(digits_site / name, drawn=True)
    assert (watched.said, watched.asked) == ([], [])
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page itself scrolls sideways"
    found = Axe().run(page, options={"preload": False})
    assert found.violations_count == 0, found.generate_report()


def test_header_sorts_and_says_so_and_the_address_keeps_it(watched: Watched, digits_site: Path) -> None:
    page = watched.open(digits_site / "digits" / "index.html")
    first = shown(page)
    head = page.locator("#rows th[data-key=score]")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert values(page, "score") == sorted(values(page, "score"), reverse=True) and shown(page) != first
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and page.url.endswith("#sort=score")
    assert values(page, "score") == sorted(values(page, "score"))
    ordered = shown(page)
    page.reload()
    assert shown(page) == ordered and head.get_attribute("aria-sort") == "ascending"
    assert page.locator("#rows th[aria-sort=none]").count() == page.locator("#rows th[data-key]").count() - 1


def test_cells_without_a_number_are_last_in_either_order(watched: Watched, digits_site: Path) -> None:
    for order in ("control", "-control"):
        page = watched.open(digits_site / "digits" / "index.html", f"#sort={order}")
        page.reload()
        assert shown(page)[-2:] == ["student", "student"]


def test_filters_hide_rows_are_told_and_can_be_shared(watched: Watched, digits_site: Path) -> None:
    page = watched.open(digits_site / "digits" / "index.html")
    everything = len(shown(page))
    page.locator("form").get_by_label("given").select_option("labels and a teacher")
    page.locator("form").get_by_label("kind of knowledge").select_option("feature")
    assert set(shown(page)) == {"at", "at_grad", "fitnets", "vid"}
    assert page.get_by_role("status").inner_text() == f"4 of {everything} rows"
    page.locator("form").get_by_label("year").select_option("2017")
    page.get_by_label("name has").fill("grad")
    assert shown(page) == ["at_grad"]
    address = page.url
    other = page.context.new_page()
    other.goto(address)
    assert shown(other) == ["at_grad"] and other.locator("form").get_by_label("year").input_value() == "2017"
    other.get_by_role("button", name="Show all").click()
    assert len(shown(other)) == everything and "=" not in other.url


def test_filter_of_a_pair_is_of_the_charts_too(watched: Watched, digits_site: Path) -> None:
    page = watched.open(digits_site / "digits" / "index.html")
    pair = "mini_vit_6 -> mini_vit_3"
    page.locator("form").get_by_label("pair").select_option(pair)
    assert set(shown(page, 1)) == {pair}
    headings = page.locator("div[data-pair]:visible h3")
    assert set(headings.all_inner_texts()) == {pair} and headings.count() == 2


def test_links_lead_from_index_to_board_to_card_and_back(watched: Watched, digits_site: Path) -> None:
    page = watched.open(digits_site / "index.html")
    page.locator(".cards").get_by_role("link", name="digits").click()
    page.locator("#rows").get_by_role("link", name="sp", exact=True).click()
    assert page.get_by_role("heading", level=1).inner_text() == "sp"
    assert page.locator(".equation math").count() == 2 and page.locator(".equation math msub").count() > 0
    page.locator("nav[aria-label=Site]").get_by_role("link", name="digits", exact=True).click()
    assert page.get_by_role("heading", level=1).inner_text() == "digits"
    assert (watched.said, watched.asked) == ([], [])


def test_sections_are_reached_without_losing_the_state(watched: Watched, digits_site: Path) -> None:
    page = watched.open(digits_site / "digits" / "index.html", "#given=labels+alone")
    page.get_by_role("link", name="Learning curves").press("Enter")
    assert page.evaluate("document.activeElement.id") == "curves" and "given=labels+alone" in page.url
    page.reload()
    assert page.evaluate("document.activeElement.id") == "curves"


def test_learning_curves_show_the_row_that_is_chosen(watched: Watched, digits_site: Path) -> None:
    page = watched.open(digits_site / "digits" / "index.html")
    lines = page.locator("section:has(#curves) figure").first
    lines.scroll_into_view_if_needed()
    lines.locator(".chart[data-drawn] svg").wait_for()
    before = lines.locator("svg").inner_html()
    lines.get_by_label("row shown").select_option("vild")
    page.wait_for_function(
        "([figure, before]) => figure.querySelector('svg').innerHTML !== before", arg=[lines.element_handle(), before]
    )


def test_without_javascript_it_is_a_plain_table(watched: Watched, digits_site: Path) -> None:
    browser = watched.page.context.browser
    assert browser
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((digits_site / "digits" / "index.html").as_uri())
    assert page.locator("#rows tbody tr").count() == 31 and page.locator("#rows button").count() == 0
    assert not page.locator("form.filters").is_visible()
    context.close()


def test_site_of_digits_is_small_and_links_nowhere_else(digits_site: Path) -> None:
    files = [path for path in digits_site.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert len(list((digits_site / "digits").glob("*.html"))) == 1 + 28


def test_colours_are_the_readers_choice_and_are_remembered(watched: Watched, digits_site: Path) -> None:
    page = watched.open(digits_site / INDEX)
    light, chosen = "rgb(251, 251, 250)", page.get_by_label("colours")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == light and chosen.input_value() == "", "as the system has it"
    chosen.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert chosen.input_value() == "dark" and page.evaluate(ground) == "rgb(20, 23, 27)"
    page.locator(".cards").get_by_role("link", name="digits").click()
    expect(page.get_by_label("colours")).to_have_value("dark")
    assert page.evaluate(ground) == "rgb(20, 23, 27)"
    page.reload()
    assert page.evaluate(ground) == "rgb(20, 23, 27)"
    found = Axe().run(page, options={"preload": False})
    assert found.violations_count == 0, found.generate_report()
    page.get_by_label("colours").select_option("as the system")
    assert page.evaluate(ground) == light
    assert (watched.said, watched.asked) == ([], [])


@pytest.mark.parametrize("watched", [DARK], indirect=True)
def test_light_is_chosen_where_the_system_is_dark(watched: Watched, digits_site: Path) -> None:
    page = watched.open(digits_site / CARD)
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(20, 23, 27)"
    page.get_by_label("colours").select_option("light")
    assert page.evaluate(ground) == "rgb(251, 251, 250)"
