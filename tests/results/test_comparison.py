from __future__ import annotations

import json
import math
import re

import pytest

from kdbench.bench.errors import InputError
from kdbench.results.analysis.comparison import (
    Compared,
    Scores,
    compare,
    compare_pairs,
    comparisons,
    over_pairs,
    over_seeds,
    rankings,
)
from kdbench.results.pages.comparison import COLUMNS, comparison_report
from kdbench.results.pages.report import render
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from tests.results.conftest import PNG, SUITE, Finish, outcome

HAND: dict[str, dict[str, list[float]]] = {
    "large -> small": {
        "student": [0.80, 0.82, 0.81],
        "kd": [0.85, 0.86, 0.87],
        "sp": [0.84, 0.88, 0.85],
        "at": [0.81, 0.82, 0.80],
    }
}
"""kd - student: 0.05, 0.04, 0.06; sp - student: 0.04, 0.06, 0.04; at - student: 0.01, 0, -0.01."""


def by_seed(values: dict[str, dict[str, list[float]]]) -> Scores:
    return {pair: {m: dict(enumerate(v, start=1)) for m, v in row.items()} for pair, row in values.items()}


def suite(store: RunStore, finish: Finish, values: dict[str, dict[str, list[float]]], seeds: int = 3) -> SweepPlan:
    """The plan and runs of hand-made accuracies."""
    pairs = [
        {"teacher": pair.split(" -> ")[0], "student": pair.split(" -> ")[1], "methods": list(row)}
        for pair, row in values.items()
    ]
    form = SUITE | {"pairs": pairs, "methods": [], "seeds": seeds}
    plan = SweepPlan.create(store.root, "toy", "abcd1234", form)
    for pair, row in by_seed(values).items():
        for method, scores in row.items():
            for seed, value in scores.items():
                key = f"{pair.split()[0]}-{method}-{seed}"
                finish(key, outcome(value))
                plan.add(Planned(pair, method, "seed", seed, key))
    return plan


def page(compared: Compared, form: str) -> str:
    return render(comparison_report(compared), form)


def diagram(compared: Compared, form: str) -> bytes:
    return comparison_report(compared).pictures["ranks"](form)


def two_pairs(**changes: dict[str, list[float]]) -> dict[str, dict[str, list[float]]]:
    return HAND | {"big -> tiny": dict(HAND["large -> small"])} | changes


def test_comparisons_with_the_control_by_hand() -> None:
    kd, sp, at = comparisons(by_seed(HAND), ["student"])
    assert [each.method for each in (kd, sp, at)] == ["kd", "sp", "at"]
    # kd: mean 0.05, standard deviation 0.01: t = 0.05 sqrt(3) / 0.01; t with 2 degrees of freedom has
    # p = 1 - t / sqrt(2 + t^2) for both sides
    assert kd.difference.mean == pytest.approx(0.05)
    assert kd.difference.half_width == pytest.approx(4.302653 * 0.01 / math.sqrt(3), abs=1e-6)
    t_kd, t_sp = 5 * math.sqrt(3), 0.14 / 3 * math.sqrt(3) / (0.02 / math.sqrt(3))
    p_kd, p_sp = (1 - t / math.sqrt(2 + t**2) for t in (t_kd, t_sp))
    assert kd.p == pytest.approx(p_kd) and sp.p == pytest.approx(p_sp) and at.p == pytest.approx(1)
    assert kd.p_holm == pytest.approx(3 * p_kd) and sp.p_holm == pytest.approx(2 * p_sp) and at.p_holm == at.p
    assert (kd.won, sp.won, at.won) == (1, 1, 0.5) and at.probability == pytest.approx(0.5)
    # one more seed: t = 5 / sqrt(1 + 1/3)
    t_new = 5 / math.sqrt(4 / 3)
    assert kd.probability == pytest.approx(1 / 2 + t_new / math.sqrt(2 + t_new**2) / 2)
    assert kd.differs and not at.differs and kd.p_wilcoxon is None


def test_each_control_and_pair_is_a_family_of_its_own() -> None:
    found = comparisons(by_seed(two_pairs()), ["student", "kd"])
    assert len(found) == 2 * 2 * 3
    alone = comparisons(by_seed(HAND), ["student"])
    assert [each for each in found if (each.control, each.pair) == ("student", "large -> small")] == alone
    (student,) = [each for each in found if (each.method, each.pair) == ("student", "big -> tiny")]
    assert student.control == "kd" and student.difference.mean == pytest.approx(-0.05)


def test_only_shared_seeds_are_compared_and_none_is_no_row() -> None:
    scores = {"p": {"student": {1: 0.5, 2: 0.5}, "kd": {2: 0.75, 3: 1.0}, "sp": {3: 0.5}}}
    (kd,) = comparisons(scores, ["student"])
    assert kd.difference.count == 1 and kd.difference.mean == 0.25
    assert kd.p is None and kd.p_holm is None and kd.probability is None and kd.won == 1 and not kd.differs
    assert comparisons(scores, ["at"]) == []


def test_ranks_over_pairs_by_hand() -> None:
    # means on the pair: kd 0.86, sp 0.85667, student 0.81, at 0.81: ranks 1, 2, 3.5, 3.5; the other way round
    # on the second but for student and at: 2, 1, 3.5, 3.5
    second = HAND["large -> small"] | {"sp": [0.9, 0.9, 0.9]}
    found = over_pairs(by_seed(two_pairs(**{"big -> tiny": second})))
    assert found.ranking is not None and found.blocks == ["large -> small", "big -> tiny"] and found.left_out == []
    assert found.ranking.ranks == {"kd": 1.5, "sp": 1.5, "at": 3.5, "student": 3.5}
    assert found.ranking.blocks == 2, "a pair is a block, whatever its seeds"


def test_ranks_over_pairs_take_those_that_share_their_methods() -> None:
    other = {"student": [0.5], "kd": [0.6], "minilm": [0.7]}
    found = over_pairs(by_seed(two_pairs(vit=other)))
    assert found.ranking is not None and len(found.blocks) == 2 and found.left_out == ["vit"]
    found = over_pairs(by_seed(two_pairs(vit=other | {"sp": [0.5]})))
    assert found.ranking is not None and len(found.blocks) == 3 and found.left_out == ["at", "minilm"]
    assert found.ranking.ranks.keys() == {"student", "kd", "sp"}


def test_why_there_are_no_ranks_over_pairs() -> None:
    assert over_pairs(by_seed(HAND)).reason.endswith("share three methods, but there is one pair.")
    found = over_pairs(by_seed(HAND | {"vit": {"student": [0.5], "kd": [0.6], "minilm": [0.7]}}))
    assert found.ranking is None and found.reason.endswith("the 2 pairs share kd, student.")
    assert over_pairs({"a": {}, "b": {}}).reason.endswith("the 2 pairs share none.")


def test_ranks_over_the_seeds_of_one_pair_by_hand() -> None:
    # seed 1: kd, sp, at, student; seed 2: sp, kd, then student and at alike; seed 3: kd, sp, student, at
    methods = by_seed(HAND)["large -> small"]
    found = over_seeds("large -> small", methods)
    assert found.ranking is not None and found.over == "large -> small"
    expected = {"kd": 4 / 3, "sp": 5 / 3, "student": 10.5 / 3, "at": 10.5 / 3}
    assert found.ranking.ranks == pytest.approx(expected) and found.blocks == ["seed 1", "seed 2", "seed 3"]


def test_methods_that_lack_seeds_are_left_out_of_ranks_over_seeds() -> None:
    values = {"p": HAND["large -> small"] | {"at": [0.8]}}
    found = over_seeds("p", by_seed(values)["p"])
    assert found.ranking is not None and found.left_out == ["at"] and "at" not in found.ranking.ranks
    assert over_seeds("p", {"kd": {1: 0.5}}).reason == "ranks on p take two seeds of three rows, but have 1 of 1."


def test_compare_reads_the_store_as_it_stands(store: RunStore, finish: Finish) -> None:
    values = two_pairs(vit={"student": [0.5]})
    values = {("vit -> vit" if pair == "vit" else pair): row for pair, row in values.items()}
    values["big -> tiny"] = values["big -> tiny"] | {"at": [0.8], "fsp": []}
    compared = compare(suite(store, finish, values), store)
    assert compared.suite == "toy@abcd1234" and {each.control for each in compared.comparisons} == {"student", "kd"}
    assert compared.missing == [
        "big -> tiny: at has 1 of 3 seeds.",
        "big -> tiny: fsp has 0 of 3 seeds.",
        "vit -> vit: student has 1 of 3 seeds.",
        "vit -> vit: kd is not among its methods.",
    ]
    assert [each.over for each in compared.rankings if each.ranking] == ["pairs", "large -> small", "big -> tiny"]
    assert (
        json.loads(json.dumps(comparison_report(compared).values, allow_nan=False))["rankings"][0]["ranking"]["blocks"]
        == 2
    )


def test_controls_must_be_methods_of_the_suite(store: RunStore, finish: Finish) -> None:
    plan = suite(store, finish, {"a -> b": {"sp": [0.1, 0.2], "at": [0.2, 0.1]}})
    with pytest.raises(InputError, match="neither student nor kd: give --against, of at, sp"):
        compare(plan, store)
    with pytest.raises(InputError, match="unknown method of toy@abcd1234 'spp': did you mean sp"):
        compare(plan, store, ["spp"])
    (found,) = compare(plan, store, ["sp", "sp"]).comparisons
    assert (found.method, found.control) == ("at", "sp")


def test_page_shows_numbers_in_points_and_how_to_read_them(store: RunStore, finish: Finish) -> None:
    compared = compare(suite(store, finish, two_pairs()), store, ["student"])
    text = page(compared, "markdown")
    assert "**toy@abcd1234: against student on large -> small**" in text
    # p: 1 - t / sqrt(2 + t^2) at t = 8.660 is 0.01307, times 3 is 0.039
    assert re.search(r"\| kd +\| \+5\.0 ± 2\.5 +\| 3 +\| 0\.013 \| 0\.039 \\\* +\| +\| 1\.00 +\| 0\.98 +\|", text)
    assert "**toy@abcd1234: mean ranks over 2 pairs**" in text and "for that pair alone" in text
    assert "So few blocks cannot tell any two of 4 methods apart" in text
    assert "Friedman chi-squared(3) = 6.00, p = 0.112; Iman-Davenport F not defined, as all blocks agree" in text
    assert "p: paired t-test, two-sided; below 0.05 just where the interval excludes zero." in text


def test_pairs_are_compared_by_each_method(store: RunStore, finish: Finish) -> None:
    plan = suite(store, finish, two_pairs(**{"big -> tiny": {"kd": [0.88, 0.90, 0.89], "sp": [0.84, 0.88, 0.85]}}))
    compared = compare_pairs(plan, store)
    assert [(each.pair, each.control, each.method) for each in compared.comparisons] == [
        ("kd", "large -> small", "big -> tiny"),
        ("sp", "large -> small", "big -> tiny"),
    ]
    kd, sp = compared.comparisons
    assert kd.difference.mean == pytest.approx(0.03) and sp.difference.mean == 0  # 0.03, 0.04 and 0.02; none
    (other,) = [each for each in compare_pairs(plan, store, ["big -> tiny"]).comparisons if each.pair == "kd"]
    assert other.difference.mean == pytest.approx(-0.03) and other.won == 0
    text = page(compared, "markdown")
    assert "**toy@abcd1234: against large -> small by kd**" in text
    assert "| pair" in text and "pair minus control" in text
    assert all("three rows" in each.reason for each in compared.rankings)
    with pytest.raises(InputError, match="unknown pair of toy@abcd1234 'big -> tine': did you mean big -> tiny"):
        compare_pairs(plan, store, ["big -> tine"])


@pytest.mark.parametrize("form", ["terminal", "markdown", "latex", "csv"])
def test_every_format_has_every_comparison(store: RunStore, finish: Finish, form: str) -> None:
    compared = compare(suite(store, finish, two_pairs()), store)
    text = page(compared, form)
    assert text.count("kd") >= 4 and text.count("big") >= 2
    if form == "terminal":
        assert all(column in text for column in COLUMNS) and max(map(len, text.splitlines())) <= 150
    if form == "csv":
        assert len(text.split("\n")) == 1 + 2 * 2 * 3
    if form == "latex":
        assert r"\toprule" in text and r"$\rightarrow$" in text and "±" not in text.replace("% ", "")


def test_unknown_formats_are_refused(store: RunStore, finish: Finish) -> None:
    compared = compare(suite(store, finish, HAND), store)
    with pytest.raises(InputError, match="unknown format 'pdf'"):
        page(compared, "pdf")
    with pytest.raises(InputError, match="unknown picture format 'jpg': did you mean png"):
        diagram(compared, "jpg")


def test_an_empty_suite_prints_what_is_missing(store: RunStore, finish: Finish) -> None:
    compared = compare(suite(store, finish, {"a -> b": {"student": [], "kd": [], "sp": []}}), store)
    text = page(compared, "terminal")
    assert "a -> b: kd has 0 of 3 seeds." in text and "difference:" not in text
    assert (
        page(compared, "csv") == "pair,control,method,difference,half_width,seeds,p,p_holm,p_wilcoxon,won,probability"
    )
    with pytest.raises(InputError, match="there are no ranks to draw: ranks over pairs take two pairs"):
        diagram(compared, "png")


def test_diagram_names_every_method_and_the_blocks(store: RunStore, finish: Finish) -> None:
    compared = compare(suite(store, finish, two_pairs()), store)
    assert diagram(compared, "png").startswith(PNG)
    svg = diagram(compared, "svg").decode()
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"kd 1.00", "sp 2.00", "3.50 student", "3.50 at"} <= set(texts)
    assert "toy@abcd1234: mean ranks over 2 pairs" in texts and any("CD 3.32" in text for text in texts)
    assert svg == diagram(compared, "svg").decode(), "equal pictures are equal files"


def test_diagram_of_one_pair_is_over_its_seeds(store: RunStore, finish: Finish) -> None:
    svg = diagram(compare(suite(store, finish, HAND), store), "svg").decode()
    assert "over 3 seeds of large -&gt; small, for that pair alone" in svg and svg.count("CD ") == 1


def test_rankings_are_over_pairs_then_over_seeds() -> None:
    assert [each.over for each in rankings(by_seed(two_pairs()))] == ["pairs", "large -> small", "big -> tiny"]
