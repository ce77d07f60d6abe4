from ignite.engine import Engine

from ignite_hooks.core.borrowed_weights import forget_borrowed_weights
from ignite_hooks.core.borrowed_weights import note_borrowed_weights
from ignite_hooks.core.borrowed_weights import step_of_borrowed_weights


def test_the_step_of_borrowed_weights_is_known_until_forgotten():
    engine = Engine(lambda engine, batch: None)
    assert step_of_borrowed_weights(engine) is None
    forget_borrowed_weights(engine)
    note_borrowed_weights(engine, 0)
    assert step_of_borrowed_weights(engine) == 0
    forget_borrowed_weights(engine)
    assert step_of_borrowed_weights(engine) is None
