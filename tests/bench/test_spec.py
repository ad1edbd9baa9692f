from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kdbench.bench.configure import configure
from kdbench.bench.errors import InputError
from kdbench.bench.spec import Compute, DataSpec, ModelSpec, Recipe, Spec

SPEC = Spec(
    method="kd",
    params={"temperature": 4.0, "alpha": 0.9},
    student=ModelSpec(name="wrn_16_2"),
    teachers=(ModelSpec(name="wrn_40_2", weights="run:0123456789abcdef"),),
    data=DataSpec(name="cifar100", fingerprint="f00d"),
)


def test_key_is_what_it_was() -> None:
    """A change here makes every stored run a stranger: raise NUMBERS if the numbers move, else restore the key."""
    assert SPEC.key == "d72d2d09ce00c1a6"


def test_key_does_not_depend_on_the_order_of_names() -> None:
    assert SPEC.model_copy(update={"params": {"alpha": 0.9, "temperature": 4.0}}).key == SPEC.key


@pytest.mark.parametrize(
    "change",
    [
        {"method": "sp"},
        {"params": {"temperature": 8.0, "alpha": 0.9}},
        {"student": ModelSpec(name="wrn_16_1")},
        {"student": ModelSpec(name="cifar_resnet8", compute=Compute(precision="bf16"))},
        {"teachers": ()},
        {"data": DataSpec(name="cifar100", fingerprint="beef")},
        {"recipe": Recipe(lr=0.1)},
        {"seed": 1},
        {"test": False},
        {"numbers": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_key_changes_with_every_field(change: dict[str, Any]) -> None:
    assert SPEC.model_copy(update=change).key != SPEC.key


def test_every_field_is_covered_above() -> None:
    assert len(Spec.model_fields) == 9


def test_json_both_ways() -> None:
    again = Spec.model_validate_json(SPEC.canonical())
    assert again == SPEC and again.key == SPEC.key


def test_spec_is_frozen_and_strict() -> None:
    with pytest.raises(ValidationError):
        SPEC.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="should match pattern"):
        ModelSpec(name="wrn_16_2", weights="pretraned")
    with pytest.raises(ValidationError, match="Extra inputs"):
        Recipe.model_validate({"learning_rate": 0.1})


def test_configure_reads_texts_as_the_fields_types() -> None:
    method = configure("fitnets", {"temperature": "8", "depth": "0.25"})
    assert method.hyperparameters()["temperature"] == 8.0 and method.hyperparameters()["depth"] == 0.25
    assert configure("sp", {"depths": "[0.5, 1]"}).hyperparameters()["depths"] == (0.5, 1.0)
    assert configure("noisy_student", {"soft": "false"}).hyperparameters()["soft"] is False
    assert configure("dml", {"peer_models": '["teacher"]'}).hyperparameters()["peer_models"] == ("teacher",)


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("kdd", {}, "unknown method 'kdd': did you mean kd"),
        ("kd", {"temprature": 1}, "unknown hyperparameter of kd 'temprature': did you mean temperature"),
        ("kd", {"temperature": 0}, "temperature must be positive, but got temperature=0.0"),
        ("kd", {"alpha": 1.5}, "alpha must lie between 0 and 1, but got alpha=1.5"),
        ("kd", {"temperature": "nan"}, "temperature must be positive, but got temperature=nan"),
        ("sp", {"depths": [2]}, "depth must lie between 0 and 1, but got depth=2.0"),
        ("fitnets", {"hint_epochs": 1}, "hint_epochs must lie between 0 and 1, both excluded"),
        ("dml", {"peer_models": []}, "peer_models must name at least one peer, but is empty"),
        ("dml", {"peer_models": ["nobody"]}, "peer_models must be one of student, teacher, but got peer_models=nobody"),
        ("multi_exit", {"annealing": 0.5}, "annealing must be finite and at least 1, but got annealing=0.5"),
        ("multi_exit", {"annealing": "Infinity"}, "annealing must be finite"),
        ("noisy_student", {"rounds": "many"}, "rounds: Input should be a valid integer"),
    ],
)
def test_bad_hyperparameters_are_refused_with_rule_and_value(method: str, params: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        configure(method, params)
    assert message in str(error.value) and "\n" not in str(error.value)
