import pytest
from ignite.engine import Events

from ignite_hooks.core.engine import move_to_front
from tests.reference import batches_of
from tests.reference import make_trainer


@pytest.mark.parametrize(
    ("batches", "accumulation", "sizes"), [(7, 3, [3, 3, 1]), (4, 4, [4]), (3, 1, [1, 1, 1])]
)
def test_windows_are_as_long_as_the_data_allows_and_known_when_they_open(
    batches, accumulation, sizes
):
    trainer, seen = make_trainer(batches_of(batches), accumulation=accumulation), []
    window = trainer._optimizer_step.window

    @trainer.on(Events.ITERATION_STARTED)
    def look(engine):
        seen.append((window.size, window.count, window.is_closing))

    trainer.run()
    assert seen == [
        (size, number, number == size) for size in sizes for number in range(1, size + 1)
    ]


@pytest.mark.parametrize(
    ("event", "taken", "steps"),
    [(Events.ITERATION_STARTED(once=3), 2, 2), (Events.ITERATION_COMPLETED(once=3), 3, 2)],
)
def test_an_optimizer_step_that_goes_within_its_own_event_does_nothing_more(event, taken, steps):
    trainer = make_trainer(batches_of(5))
    step = trainer._optimizer_step
    trainer.add_event_handler(event, lambda: step.attachment.remove())
    move_to_front(trainer, event)
    trainer.run()
    assert step.window.taken == taken
    assert trainer.state.optimizer_step == steps
