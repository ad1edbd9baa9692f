from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import InputError
from methods import REGISTRY
from sweeps.suite import bundled, load_suite


def test_bundled_suites_load_and_name_known_methods() -> None:
    assert "digits" in bundled()
    for name in bundled():
        suite = load_suite(name)
        assert set(suite.methods) <= set(REGISTRY) and "student" in suite.methods and "kd" in suite.methods


def test_defaults_are_the_papers_and_lie_in_the_space(tiny: Path) -> None:
    suite = load_suite(str(tiny))
    for method in REGISTRY:
        space, defaults = suite.space(method), suite.defaults(method)
        assert space.keys() == defaults.keys() and "recipe.lr" in space
        assert all(space[name]._contains(space[name].to_internal_repr(value)) for name, value in defaults.items())


def test_setting_goes_to_method_and_recipe(tiny: Path) -> None:
    suite = load_suite(str(tiny))
    teacher = suite.teacher_spec(suite.pairs[0], "fp32")
    spec = suite.spec(suite.pairs[0], "kd", {"temperature": 8.0, "recipe.lr": 0.2}, teacher, seed=3, test=False)
    assert spec.params["temperature"] == 8.0 and spec.params["alpha"] == 0.9
    assert spec.recipe.lr == 0.2 and spec.recipe.epochs == 4 and spec.seed == 3 and not spec.test
    assert spec.teachers[0].weights == f"run:{teacher.key}"


def test_teacher_may_be_given_more_labels(tiny: Path) -> None:
    tiny.write_text("teacher_fraction = 1.0\n" + tiny.read_text() + "\n[teacher]\nepochs = 9\n")
    suite = load_suite(str(tiny))
    teacher = suite.teacher_spec(suite.pairs[0], "fp32")
    assert teacher.data.train_fraction == 1.0 and teacher.recipe.epochs == 9 and teacher.method == "student"
    assert suite.spec(suite.pairs[0], "kd", {}, teacher, seed=1, test=True).data.train_fraction == 0.1


def test_digest_is_of_the_protocol_alone(tiny: Path) -> None:
    suite = load_suite(str(tiny))
    same = suite.model_copy(update={"seeds": 9, "methods": ("kd",)})
    assert same.digest("fp32") == suite.digest("fp32")
    assert suite.digest("bf16") != suite.digest("fp32")
    longer = suite.model_copy(update={"recipe": suite.recipe.model_copy(update={"epochs": 5})})
    assert longer.digest("fp32") != suite.digest("fp32")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"sp"]', '"sq"]', "unknown method 'sq': did you mean sp"),
        ("trials = 3", "trials = 0", "tuning.trials: Input should be greater than or equal to 1, but got 0"),
        ("lr = { low = 0.03", "lr = { low = 3.0", "low must be below high"),
        ("lr = { low", "epochs = { low", "epochs is not a searchable number"),
        ("seeds = 2", "sedes = 2", "sedes: Extra inputs are not permitted"),
        ('name = "digits"', "", "data.name: Field required"),
        ('augment = "crop"', 'augment = "corp"', "unknown augmentation 'corp': did you mean crop"),
        ("[[pairs]]", "[[pairs", "is not TOML"),
    ],
)
def test_broken_suite_is_refused_with_rule_and_value(tiny: Path, old: str, new: str, message: str) -> None:
    text = tiny.read_text()
    assert old in text
    tiny.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        load_suite(str(tiny))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_unknown_suite_lists_the_near_ones() -> None:
    with pytest.raises(InputError, match="did you mean digits"):
        load_suite("digit")
    with pytest.raises(InputError, match="no suite file"):
        load_suite("missing.toml")
