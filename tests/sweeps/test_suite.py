from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution

from kdbench.bench.configure import flat, method_of
from kdbench.bench.errors import InputError
from kdbench.bench.spec import Recipe
from kdbench.bench.training.stage_plan import StagePlan
from kdbench.methods import REGISTRY
from kdbench.methods.base import Net
from kdbench.results.store.plan import UNLABELLED
from kdbench.sweeps.suites import files
from kdbench.sweeps.suites.files import bundled, load_suite
from kdbench.sweeps.suites.tuning import containing


def test_bundled_suites_load_and_name_known_methods() -> None:
    assert "digits" in bundled()
    for name in bundled():
        suite = load_suite(name)
        assert all("student" in suite.methods_of(pair) for pair in suite.pairs)


def test_digits_sweeps_every_method_of_the_survey() -> None:
    suite = load_suite("digits")
    rows = {name for pair in suite.pairs for name in suite.methods_of(pair)}
    page = (Path(__file__).resolve().parents[2] / "docs" / "modern.md").read_text(encoding="utf-8")
    modern = set(re.findall(r"^\| `(\w+)` \|.*\| 20\d\d \|", page, re.MULTILINE))
    survey = {name for name, each in REGISTRY.items() if each.collection == "survey"}
    assert modern == {name for name, each in REGISTRY.items() if each.collection == "modern"}
    assert {suite.configured(row, {}).id for row in rows} == survey and survey <= rows
    assert modern | survey == set(REGISTRY) and len(survey) == 1 + 20


def test_first_trial_is_the_papers_and_the_second_the_calibrated(tiny: Path) -> None:
    suite = load_suite(str(tiny))
    for method in REGISTRY:
        weights = dict.fromkeys(suite.weights(method), 0.25)
        space, (paper, *others) = suite.space(method, weights), suite.starts(method, "", weights)
        defaults = flat(suite.configured(method, {}).hyperparameters()) | {"recipe.lr": suite.recipe.lr}
        assert all(value == defaults.get(name, 1.0) for name, value in paper.items()) and "recipe.lr" in space
        assert others == ([paper | weights] if weights else [])
        for start in (paper, *others):
            assert start.keys() == space.keys()
            for name, distribution in containing(space, start).items():
                assert distribution._contains(distribution.to_internal_repr(start[name])), name


def test_weights_are_searched_in_units_of_their_calibrated_value(tiny: Path) -> None:
    suite = load_suite(str(tiny))
    assert suite.weights("sp") == ("weight",) and suite.weights("student") == ()
    assert suite.space("sp", {"weight": 60.0})["weight"] == FloatDistribution(2.0, 1800.0, log=True)
    assert suite.space("sp", {})["weight"] == FloatDistribution(100.0, 90000.0, log=True), "around the paper's"


def test_a_suite_may_set_ranges_starts_and_fixed_weights_by_row(tiny: Path) -> None:
    end = """
        [tuning.ranges.sp]
        weight = { low = 1.0, high = 5.0 }
        [tuning.starts.kd]
        temperature = 9.0
        [settings.at]
        beta = 7.0
    """
    suite = load_suite(str(write(tiny, end=end)))
    assert suite.space("sp", {})["weight"] == FloatDistribution(1.0, 5.0) and suite.weights("sp") == ()
    assert [start["temperature"] for start in suite.starts("kd", "", {})] == [9.0]
    assert suite.weights("at") == () and "beta" not in suite.space("at", {})
    tiny.write_text(tiny.read_text().replace("temperature = 9.0", "temperature = -1.0"))
    with pytest.raises(InputError, match="temperature must be positive"):
        load_suite(str(tiny))


def test_a_row_may_be_trained_by_a_recipe_of_its_own(tiny: Path) -> None:
    end = '[settings.longer]\nmethod = "student"\n"recipe.epochs" = 12'
    tiny.write_text(tiny.read_text().replace('"sp"]', '"sp", "longer"]'))
    suite = load_suite(str(write(tiny, end=end)))
    specs = [suite.spec(suite.resolve(suite.pairs[0]), row, {"recipe.lr": 0.2}, True) for row in ("student", "longer")]
    assert [(spec.method, spec.recipe.epochs, spec.recipe.lr) for spec in specs] == [
        ("student", 4, 0.2),
        ("student", 12, 0.2),
    ]


def test_split_labels_and_teachers_are_drawn_anew_with_each_seed(tiny: Path) -> None:
    suite = load_suite(str(tiny))
    resolved = [suite.resolve(suite.pairs[0], seed=seed) for seed in (0, 3)]
    specs = [suite.spec(each, "kd", {}, True) for each in resolved]
    assert [(spec.seed, spec.data.split_seed) for spec in specs] == [(0, 0), (3, 3)]
    (first,), (second,) = (each.teachers for each in resolved)
    assert (second.seed, second.data.split_seed) == (3, 3) and first.key != second.key
    assert [spec.teachers[0].weights for spec in specs] == [f"run:{first.key}", f"run:{second.key}"]


def test_rows_say_what_they_are_given(tiny: Path) -> None:
    tiny.write_text(tiny.read_text().replace('"sp"]', '"sp", "kd_all", "dml"]'))
    suite = load_suite(str(write(tiny, end='[settings.kd_all]\nmethod = "kd"\nunlabelled = true')))
    record = suite.record()
    assert record["given"] == {
        "student": "labels alone",
        "kd": "labels and a teacher",
        "sp": "labels and a teacher",
        "kd_all": UNLABELLED,
        "dml": "labels alone",
    }
    assert record["baselines"] == {"labels and a teacher": "kd", UNLABELLED: "kd_all"}


def test_settings_of_a_longer_tuning_are_tried_unless_it_is_cold(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "warm").mkdir()
    pair = load_suite(str(tiny)).pairs[0].name
    found = {"trials": 40, "settings": {pair: {"kd": {"temperature": 2.5, "alpha": 0.7, "recipe.lr": 0.07}}}}
    (tmp_path / "warm" / "long.json").write_text(json.dumps(found))
    monkeypatch.setattr(files, "_folder", lambda: tmp_path)
    tiny.write_text(tiny.read_text().replace("trials = 3", 'trials = 3\nwarm_from = "long"'))
    warm, cold = load_suite(str(tiny)), load_suite(str(tiny), cold=True)
    assert warm.starts("kd", pair, {})[-1] == found["settings"][pair]["kd"] and len(cold.starts("kd", pair, {})) == 1
    assert warm.tuning.warm_trials == 40 and warm.digest("fp32") != cold.digest("fp32")
    other = tmp_path / "other.toml"
    other.write_text(f'extends = "{tiny}"\nseeds = 7\n')
    assert load_suite(str(other)).tuning == cold.tuning, "they were found for the protocol of the other suite"
    tiny.write_text(tiny.read_text().replace('"long"', '"none"'))
    with pytest.raises(InputError, match="comes with no settings that none has found"):
        load_suite(str(tiny))


def test_setting_goes_to_method_and_recipe(tiny: Path) -> None:
    suite = load_suite(str(tiny))
    resolved = suite.resolve(suite.pairs[0])
    (teacher,) = resolved.teachers
    spec = suite.spec(resolved, "kd", {"temperature": 8.0, "recipe.lr": 0.2}, test=False)
    assert spec.params["temperature"] == 8.0 and spec.params["alpha"] == 0.9
    assert spec.recipe.lr == 0.2 and spec.recipe.epochs == 4 and spec.seed == 0 and not spec.test
    assert spec.teachers[0].weights == f"run:{teacher.key}"


def test_teacher_may_be_given_more_labels(tiny: Path) -> None:
    tiny.write_text("teacher_fraction = 1.0\n" + tiny.read_text() + "\n[teacher]\nepochs = 9\n")
    suite = load_suite(str(tiny))
    resolved = suite.resolve(suite.pairs[0])
    (teacher,) = resolved.teachers
    assert teacher.data.train_fraction == 1.0 and teacher.recipe.epochs == 9 and teacher.method == "student"
    assert suite.spec(resolved, "kd", {}, test=True).data.train_fraction == 0.1


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
        ("seeds = 2", "sedes = 2", "sedes: unknown key 'sedes': did you mean seeds"),
        ("epochs = 4", "epoch = 4", "recipe.epoch: unknown key 'epoch': did you mean epochs?"),
        ("low = 0.03", "lowest = 0.03", "lr.lowest: unknown key 'lowest': did you mean low"),
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


def write(tiny: Path, pair: str = "", top: str = "", end: str = "") -> Path:
    """The tiny suite with more in its pair, at its top and at its end."""
    text = tiny.read_text().replace(
        'student = "cifar_resnet8_quarter"\n', f'student = "cifar_resnet8_quarter"\n{pair}\n'
    )
    tiny.write_text(f"{top}\n{text}\n{end}\n")
    return tiny


def test_several_teachers_go_to_methods_that_take_them_and_the_first_to_the_others(tiny: Path) -> None:
    suite = load_suite(str(write(tiny, 'more_teachers = ["cifar_resnet8", "cifar_resnet14"]')))
    (pair,) = suite.pairs
    resolved = suite.resolve(pair)
    teachers = resolved.teachers
    assert [(spec.student.name, spec.seed) for spec in teachers] == [
        ("cifar_resnet8", 0),
        ("cifar_resnet8", 1000),
        ("cifar_resnet14", 0),
    ]
    several = suite.spec(resolved, "multi_teacher", {}, test=True)
    assert [model.weights for model in several.teachers] == [f"run:{spec.key}" for spec in teachers]
    assert suite.spec(resolved, "kd", {}, test=True).teachers == several.teachers[:1]


def test_settings_are_fixed_and_leave_the_search_space(tiny: Path) -> None:
    suite = load_suite(str(write(tiny, end="[settings.kd]\ntemperature = 9.0\nform = 'mse'")))
    (start,) = suite.starts("kd", "", {})
    assert suite.space("kd", {}).keys() == start.keys() == {"alpha", "recipe.lr"}
    spec = suite.spec(suite.resolve(suite.pairs[0]), "kd", {"alpha": 0.5}, True)
    assert (spec.params["temperature"], spec.params["alpha"], spec.params["form"]) == (9.0, 0.5, "mse")


def test_early_stopped_teacher_is_a_row_of_its_own(tiny: Path) -> None:
    suite = load_suite(str(write(tiny, end='[settings."eskd early"]\nmethod = "eskd"\nteacher_epochs = 0.25')))
    spec = suite.spec(suite.resolve(suite.pairs[0]), "eskd early", {"stop": 0.7}, test=True)
    assert (spec.method, spec.params["teacher_epochs"], spec.params["stop"]) == ("eskd", 0.25, 0.7)
    assert (
        "teacher_epochs" not in suite.space("eskd early", {})
        and suite.spec(suite.resolve(suite.pairs[0]), "eskd", {}, test=True).params["teacher_epochs"] == 0.0
    )
    plan = StagePlan.of(method_of(spec), Recipe(epochs=200), (Net("teacher"),))
    assert [(stage.name, stage.students, epochs) for stage, epochs in zip(plan.stages, plan.epochs, strict=True)] == [
        ("teacher", (Net("teacher", "early"),), 50),
        ("train", (Net("student"),), 200),
    ]


def test_settings_that_say_their_method_are_a_row_of_their_own(tiny: Path) -> None:
    end = '[settings."kd T=9"]\nmethod = "kd"\ntemperature = 9.0'
    tiny.write_text(tiny.read_text().replace('"sp"]', '"kd T=9"]'))
    suite = load_suite(str(write(tiny, end=end)))
    resolved = suite.resolve(suite.pairs[0])
    plain, named = (suite.spec(resolved, name, {}, True) for name in ("kd", "kd T=9"))
    assert (plain.method, plain.params["temperature"], named.method, named.params["temperature"]) == (
        *("kd", 4.0),
        *("kd", 9.0),
    )
    assert "temperature" in suite.space("kd", {}) and "temperature" not in suite.space("kd T=9", {})
    tiny.write_text(tiny.read_text().replace('method = "kd"', 'method = "kdd"'))
    with pytest.raises(InputError, match="unknown method 'kdd'.* did you mean kd"):
        load_suite(str(tiny))
    tiny.write_text(tiny.read_text().replace("kd T=9", "sp"))
    with pytest.raises(InputError, match="settings of sp are those of a method, so they cannot say another"):
        load_suite(str(tiny))


def test_a_pair_may_have_methods_and_a_recipe_of_its_own(tiny: Path) -> None:
    plain = load_suite(str(tiny))
    suite = load_suite(str(write(tiny, 'methods = ["student", "kd"]\nrecipe = { augment = "none" }')))
    (pair,) = suite.pairs
    resolved = suite.resolve(pair)
    teachers = resolved.teachers
    assert suite.methods_of(pair) == ("student", "kd") and plain.methods_of(plain.pairs[0]) == plain.methods
    assert suite.spec(resolved, "kd", {}, True).recipe.augment == teachers[0].recipe.augment == "none"
    assert suite.digest("fp32") != plain.digest("fp32")


def test_pairs_of_the_same_networks_differ_by_note_and_teaching(tiny: Path) -> None:
    plain = load_suite(str(tiny))
    suite = load_suite(str(write(tiny, 'note = "early"\nteaching = { epochs = 1 }')))
    (pair,), (usual,) = suite.pairs, plain.pairs
    teacher, student = usual.teacher, usual.student
    assert pair.name == f"{' + '.join(usual.teachers)} early -> {student}" and pair.teacher == teacher
    assert suite.teacher_recipe(pair).epochs == 1 != plain.teacher_recipe(usual).epochs
    assert suite.recipe_of(pair) == plain.recipe_of(usual)
    assert suite.digest("fp32") != plain.digest("fp32")


def test_a_composition_is_a_method_of_a_suite(tiny: Path) -> None:
    tiny.write_text(tiny.read_text().replace('"sp"]', '"kd+0.5*sp"]'))
    suite = load_suite(str(tiny))
    assert "temperature" in suite.space("kd+0.5*sp", {}) and "losses" not in suite.space("kd+0.5*sp", {})
    spec = suite.spec(suite.resolve(suite.pairs[0]), "kd+0.5*sp", {}, True)
    assert spec.method == "textbrewer" and spec.params["losses"] == "kd+0.5*sp"


@pytest.mark.parametrize(
    ("pair", "end", "message"),
    [
        ('methods = ["kdd"]', "", "unknown method 'kdd'"),
        ('recipe = { augment = "mirror" }', "", "unknown augmentation 'mirror'"),
        ("recipe = { lr = -1.0 }", "", "lr: Input should be greater than 0"),
        ("", "[settings.kd]\ntemprature = 4", "unknown hyperparameter of kd 'temprature'"),
        ("", "[settings.kd]\nalpha = 2.0", "alpha must lie between 0 and 1"),
        ("", '[[pairs]]\nteacher = "cifar_resnet8"\nstudent = "cifar_resnet8_quarter"', "pairs must differ"),
    ],
)
def test_bad_pairs_and_settings_are_refused(tiny: Path, pair: str, end: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_suite(str(write(tiny, pair, end=end)))


def test_a_suite_may_extend_another(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(
        f'extends = "{tiny}"\nseeds = 7\n[data]\ntrain_fraction = 0.3\n[tuning.search]\nweight_decay = '
        "{ low = 1e-5, high = 1e-3, log = true }\n"
    )
    base, suite = load_suite(str(tiny)), load_suite(str(other))
    assert suite.name == "other" and suite.seeds == 7 and suite.methods == base.methods and suite.recipe == base.recipe
    assert suite.data == base.data.model_copy(update={"train_fraction": 0.3})
    assert set(suite.tuning.search) == {"lr", "weight_decay"} and suite.tuning.trials == base.tuning.trials
    other.write_text(f'extends = "{other}"')
    with pytest.raises(InputError, match="extends itself"):
        load_suite(str(other))
    other.write_text('extends = "digitz"')
    with pytest.raises(InputError, match="unknown suite 'digitz': did you mean digits"):
        load_suite(str(other))


@pytest.mark.parametrize("name", bundled())
def test_teachers_and_searches_of_a_bundled_suite_suit_its_optimizer(name: str) -> None:
    """A suite that extends another takes over what it does not say, as the learning rate of another optimizer."""
    suite = load_suite(name)
    teacher = {**suite.recipe.model_dump(), **suite.teacher}
    rates = [suite.recipe.lr, teacher["lr"]]
    assert max(rates) <= 5 * min(rates)
    if "lr" in suite.tuning.search:
        space = suite.tuning.search["lr"]
        assert space.low <= suite.recipe.lr <= space.high
