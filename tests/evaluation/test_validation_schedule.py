import dataclasses

import pytest

from ignite_hooks import Validation
from ignite_hooks.evaluation.validation_schedule import ValidationSchedule


def test_a_validation_has_its_fields_and_defaults():
    schedule = ValidationSchedule()
    validation = Validation(lambda: None)
    assert isinstance(validation, ValidationSchedule)
    for field in dataclasses.fields(schedule):
        assert getattr(validation, field.name) == getattr(schedule, field.name)


def test_a_schedule_makes_a_validation():
    schedule = ValidationSchedule(every_steps=3, every_epochs=2, at_start=True, prefix="test_")
    validation = Validation(lambda: None, **vars(schedule))
    assert {**vars(validation), **vars(schedule)} == vars(validation)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("every_steps", 0, "an integer >= 1"),
        ("every_epochs", 1.0, "an integer >= 1"),
        ("at_start", 1, "True or False"),
        ("prefix", None, "a string"),
        ("prefix", 1, "a string"),
    ],
)
def test_a_wrong_value_is_named_with_the_rule(field, value, rule):
    with pytest.raises(ValueError, match=f"`{field}` must be {rule}, got {value!r}"):
        ValidationSchedule(**{field: value})
