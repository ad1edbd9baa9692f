"""A protocol that brings published numbers of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdbench.bench.errors import InputError
from kdbench.sweeps.protocols.files import load_protocol
from kdbench.sweeps.protocols.request import table_request
from tests.sweeps.commands import Run
from tests.sweeps.test_reproduce import TINY

PAIR = 'teacher = "MLP 784-1200-1200-10", student = "MLP 784-800-800-10"'
TEACHER = '{ method = "teacher", teacher = "MLP 784-1200-1200-10", value = 97.5, source = "Table 1" }'
STUDENT = '{ method = "student", student = "MLP 784-800-800-10", value = 91.5, source = "Table 1" }'
KIND = ', spread_kind = "std"'
KD = f'{{ method = "kd", {PAIR}, value = 93, spread = 0.4, spread_kind = "std", seeds = 5, source = "Table 2" }}'
OWN = TINY.replace('table = "hinton2015_mnist"', 'table = "Ours, 2026"').replace("test_errors", "accuracy_top1")
CSV = """method,teacher,student,value,spread,spread_kind,seeds,source
teacher,MLP 784-1200-1200-10,,97.5,,,,Table 1
student,,MLP 784-800-800-10,91.5,,,,Table 1
kd,MLP 784-1200-1200-10,MLP 784-800-800-10,93,0.4,std,5,Table 2
"""


def protocol(folder: Path, numbers: str, text: str = OWN) -> str:
    """The path of the tiny protocol with these numbers."""
    path = folder / "own.toml"
    path.write_text(f"published_numbers = {numbers}\n{text}" if numbers else text)
    return str(path)


def test_numbers_in_the_protocol_or_in_a_file_beside_it_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "numbers.csv").write_text(CSV)
    inline = load_protocol(protocol(tmp_path, f"[{TEACHER}, {STUDENT}, {KD}]"))
    beside = load_protocol(protocol(tmp_path, '"numbers.csv"'))
    assert inline == beside
    wanted = [each.published for each in table_request(beside).wanted() if each.published]
    assert [(each.method, each.value, each.spread, each.seeds) for each in wanted] == [
        ("teacher", 97.5, None, None),
        ("student", 91.5, None, None),
        ("kd", 93.0, 0.4, 5),
    ]
    assert {each.dataset for each in wanted} == {"digits"} and {each.metric for each in wanted} == {"accuracy_top1"}
    other = load_protocol(protocol(tmp_path, f"[{TEACHER}, {STUDENT}, {KD.replace('93', '94')}]"))
    assert other.digest() == beside.digest(), "what was published decides no run"


def test_they_stand_beside_ours(kdbench: Run, tmp_path: Path) -> None:
    path = protocol(tmp_path, f"[{TEACHER}, {STUDENT}, {KD}]")
    asked = ["reproduce", path, "--scale", "short", "--methods", "student", "--store", "runs"]
    code, out, err = kdbench(*asked, "--workers", "2", "--precision", "fp32", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert row["published"]["value"] == 91.5 and row["published"]["source"] == "Table 1" and row["value"] > 0
    code, out, err = kdbench(*asked[:-4], "--store", "runs", "--no-train")
    assert code == 0 and "93 ± 0.4" in out and "of own: Table 2; ± is a standard deviation" in " ".join(out.split()), (
        out
    )
    code, out, err = kdbench("tables", path)
    assert code == 0 and "published_numbers" not in err


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ("", "published.csv has no number of teacher (method 'teacher', teacher 'MLP 784-1200-1200-10'"),
        (
            "",
            '= [{ method = "teacher", teacher = "MLP 784-1200-1200-10", value = 92.1, source = "their Table 2" }], or',
        ),
        ("", "unknown table of published.csv 'Ours, 2026'"),
        (f"[{TEACHER}, {STUDENT}]", "published_numbers has no number of kd T=20 (method 'kd', teacher 'MLP 784-1200"),
        (f"[{TEACHER}, {STUDENT}]", "or say printed = false in its row"),
        (f"[{TEACHER}, {STUDENT}, {KD}, {KD.replace('93', '94')}]", "has 93.0, 94.0 for kd T=20"),
        (
            f"[{TEACHER}, {STUDENT}, {KD.replace('93', '930')}]",
            "published_numbers, number 3: accuracy_top1 cannot be 930",
        ),
        (f"[{KD.replace(KIND, '')}]", "published_numbers, number 1: a spread has a kind"),
        (f"[{KD.replace('value', 'valeu')}]", "published_numbers.0.value: Field required"),
        ('"gone.csv"', "gone.csv, named by published_numbers, cannot be read: No such file"),
        ('"wrong.csv"', "wrong.csv has the columns accuracy, which are none: its first line names columns of method,"),
        ('"empty.csv"', "empty.csv has no row"),
    ],
)
def test_what_is_missing_or_wrong_is_said_with_the_way_out(tmp_path: Path, numbers: str, message: str) -> None:
    (tmp_path / "wrong.csv").write_text("method,accuracy\nkd,91\n")
    (tmp_path / "empty.csv").write_text("method,value\n")
    with pytest.raises(InputError) as error:
        load_protocol(protocol(tmp_path, numbers))
    assert message in str(error.value) and "\n" not in str(error.value)
