from ignite_hooks import Validation
from ignite_hooks.core.stale_metrics import measured_at
from tests.reference import batches_of
from tests.reference import make_trainer


def test_measured_at_gives_the_last_iteration_with_a_value():
    values = iter([{"a": 1.0, "b": 1.0}, {"a": 2.0}])
    trainer = make_trainer(
        batches_of(5), validation=Validation(lambda: next(values), every_steps=2)
    )
    assert measured_at(trainer) == {}
    trainer.run()
    assert measured_at(trainer) == {"val_a": 4, "val_b": 2}


def test_measured_at_is_kept_per_engine():
    one, other = make_trainer(), make_trainer()
    measured_at(one)["a"] = 1
    assert measured_at(other) == {}
