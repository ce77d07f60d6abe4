"""The length of an epoch: one pass over the data, whatever its length, and data set in a run."""

import io

import pytest
import torch
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import ProgressBar
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import IterableDataset
from torch.utils.data import Sampler

from ignite_hooks import Validation
from tests.reference import NO_DATA
from tests.reference import Repeatable
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import position
from tests.reference import samples
from tests.reference import seed
from tests.reference import weights


class Growing(Dataset):
    """A data set of any size, which can change."""

    def __init__(self, size):
        self.size = size
        self.all = samples(40)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.all[index]


class GrowingStream(IterableDataset):
    """A data set without length, with two more samples in each pass."""

    def __init__(self):
        self.size = 2

    def __iter__(self):
        self.size += 2
        data = Growing(self.size)
        yield from (data[index] for index in range(len(data)))


class FewerEachPass(Sampler):
    """Batches of indices: five in the first pass, one less in each further one."""

    def __init__(self):
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 5 - self.epoch

    def __iter__(self):
        return iter([[2 * number, 2 * number + 1] for number in range(len(self))])


def shown_lengths(trainer, events):
    """Returns the values of ``state.epoch_length`` at each event, by epoch."""
    shown = {}
    for event in events:

        def note(engine, event=event):
            shown.setdefault(engine.state.epoch, {})[event.name] = engine.state.epoch_length

        trainer.add_event_handler(event, note)
    return shown


EVENTS = [Events.EPOCH_STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED]


def all_of(length):
    return {event.name: length for event in EVENTS}


@pytest.mark.parametrize("shuffle", [False, True])
def test_each_epoch_sees_all_of_a_growing_dataset(shuffle):
    data = Growing(6)
    trainer = make_trainer(DataLoader(data, batch_size=2, shuffle=shuffle), accumulation=2)
    shown = shown_lengths(trainer, EVENTS)

    @trainer.on(Events.EPOCH_COMPLETED)
    def grow(engine):
        data.size += 4

    trainer.run(max_epochs=3)
    assert shown == {1: all_of(3), 2: all_of(5), 3: all_of(7)}
    assert (trainer.state.iteration, trainer.state.optimizer_step) == (15, 2 + 3 + 4)


def test_an_epoch_sees_a_dataset_grown_at_its_start():
    data = Growing(6)
    trainer = make_trainer(DataLoader(data, batch_size=2))
    shown = shown_lengths(trainer, EVENTS)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: setattr(data, "size", 10))
    trainer.run()
    assert shown == {1: {**all_of(5), "EPOCH_STARTED": 3}}
    assert trainer.state.iteration == 5


# A length that is only promised


class Promising(Repeatable):
    """Batches whose ``len()`` may be wrong, and draws random numbers."""

    def __init__(self, promised, batches=None):
        super().__init__(batches_of(4) if batches is None else batches)
        self.promised = promised

    def __len__(self):
        torch.rand(3)
        return self.promised


class PromisingLoader(DataLoader):
    def __init__(self, promised):
        self.promised = promised
        super().__init__(samples(8), batch_size=2)

    def __iter__(self):
        yield from super().__iter__()

    def __len__(self):
        return self.promised


class PromisingStream(IterableDataset):
    def __init__(self, promised):
        self.promised = promised

    def __iter__(self):
        data = samples(8)
        yield from (data[index] for index in range(len(data)))

    def __len__(self):
        return 2 * self.promised


PROMISES = {
    "an iterable": Promising,
    "a loader": PromisingLoader,
    "a stream": lambda promised: DataLoader(PromisingStream(promised), batch_size=2),
}


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize("promised", [4, 2, 9])
@pytest.mark.parametrize("kind", PROMISES)
def test_an_uncertain_length_is_shown_but_not_used(kind, promised):
    def trained(data):
        seed()
        trainer = make_trainer(data, accumulation=3)
        shown = shown_lengths(trainer, EVENTS)
        trainer.run(max_epochs=2)
        return trainer.state.optimizer_step, weights(trainer.model), shown

    steps, trained_weights, shown = trained(PROMISES[kind](promised))
    expected = trained(Repeatable(batches_of(4) if kind == "an iterable" else batches_in(8)))
    of_each = {**all_of(promised), "EPOCH_COMPLETED": 4}
    assert shown == {1: of_each, 2: of_each}
    assert steps == expected[0] == 4
    assert torch.equal(trained_weights, expected[1])


def batches_in(number):
    return [*DataLoader(samples(number), batch_size=2)]


def test_a_progress_bar_works_with_an_uncertain_length():
    trainer = make_trainer(Promising(3))
    stream = io.StringIO()
    ProgressBar(persist=True, file=stream).attach(trainer)
    trainer.run(max_epochs=2)
    assert "[1/3]" in stream.getvalue()


def test_an_uncertain_length_is_neither_saved_nor_resumed():
    trainer = make_trainer(Promising(3))
    trainer.run(max_steps=2)
    assert trainer.state.epoch_length == 3
    assert trainer.state.max_epochs is None
    assert trainer.state_dict()["epoch_length"] is None
    trainer.run(max_steps=9)
    assert trainer.state.epoch == 3
    assert trainer.state_dict()["epoch_length"] == 4
    other = make_trainer(None)
    other.load_position_state_dict(trainer.position_state_dict())
    shown = shown_lengths(other, EVENTS)
    other.run(Promising(3), max_epochs=3)
    assert shown == {3: {**all_of(3), "EPOCH_COMPLETED": 4}}


def test_a_terminated_epoch_leaves_the_length_uncertain():
    trainer = make_trainer(Promising(3))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate_epoch()
    )
    shown, max_epochs = shown_lengths(trainer, [Events.EPOCH_COMPLETED]), []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: max_epochs.append(engine.state.max_epochs)
    )
    trainer.run(max_steps=9)
    assert max_epochs == [None, 3]
    assert shown == {1: {"EPOCH_COMPLETED": 3}, 2: {"EPOCH_COMPLETED": 4}}
    assert trainer.state.iteration == 9


def test_data_set_within_an_epoch_add_their_uncertain_length():
    trainer = make_trainer(Promising(3))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda engine: engine.set_data(Promising(5))
    )
    shown = shown_lengths(trainer, EVENTS)
    trainer.run()
    assert shown == {
        1: {"EPOCH_STARTED": 3, "ITERATION_COMPLETED": 2 + 5, "EPOCH_COMPLETED": 2 + 4}
    }


def test_writing_another_value_fixes_an_uncertain_length():
    trainer = make_trainer(Promising(3))
    trainer.add_event_handler(
        Events.EPOCH_STARTED(once=1), lambda engine: setattr(engine.state, "epoch_length", 2)
    )
    trainer.run(max_epochs=3)
    assert (trainer.state.iteration, trainer.state.epoch_length) == (6, 2)
    assert trainer.state_dict()["epoch_length"] == 2


@pytest.mark.parametrize("error", [TypeError, NotImplementedError])
def test_a_refused_length_is_not_shown(error):
    class Refusing(Repeatable):
        def __len__(self):
            raise error

    trainer = make_trainer(Refusing(batches_of(2)))
    shown = shown_lengths(trainer, [Events.EPOCH_STARTED, Events.EPOCH_COMPLETED])
    trainer.run()
    assert shown == {1: {"EPOCH_STARTED": None, "EPOCH_COMPLETED": 2}}


@pytest.mark.parametrize(
    "limits", [{"max_epochs": 1}, {"max_epochs": 2}], ids=["new run", "continued"]
)
def test_a_run_sees_all_of_a_dataset_grown_before_it(limits):
    data = Growing(6)
    trainer = make_trainer(DataLoader(data, batch_size=2, shuffle=True))
    trainer.run(max_epochs=1)
    data.size = 10
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.batch[0])
    )
    trainer.run(**limits)
    assert trainer.state.epoch_length == len(seen) == 5
    assert len(torch.cat(seen).unique(dim=0)) == 10


def test_epochs_follow_a_sampler_of_varying_length():
    loader = DataLoader(Growing(10), batch_sampler=FewerEachPass())
    trainer = make_trainer(loader, accumulation=2)
    shown = shown_lengths(trainer, EVENTS)
    trainer.run(max_epochs=3)
    assert shown == {1: all_of(5), 2: all_of(4), 3: all_of(3)}
    assert trainer.state.optimizer_step == 3 + 2 + 2


def test_a_stream_shows_its_length_once_known():
    trainer = make_trainer(DataLoader(GrowingStream(), batch_size=2))
    shown = shown_lengths(trainer, EVENTS)
    trainer.run(max_epochs=2)
    assert {epoch: each["EPOCH_STARTED"] for epoch, each in shown.items()} == {1: None, 2: None}
    assert {epoch: each["EPOCH_COMPLETED"] for epoch, each in shown.items()} == {1: 2, 2: 3}


def test_stream_state_can_be_loaded_in_the_middle_of_a_pass():
    trainer = make_trainer(Repeatable(batches_of(4)))
    trainer.run(max_epochs=1)
    trainer.run(max_steps=6)
    assert trainer.state.epoch_length is None
    state = trainer.state_dict()
    assert state["epoch_length"] == 4
    other = make_trainer(Repeatable(batches_of(4)))
    other.load_state_dict({**state, "max_epochs": 3})
    other.run()
    assert (other.state.epoch, other.state.iteration) == (3, 12)


def test_max_epochs_follows_max_steps_on_growing_data():
    data, shown = Growing(6), []
    trainer = make_trainer(DataLoader(data, batch_size=2))

    @trainer.on(Events.EPOCH_STARTED)
    def note_and_grow(engine):
        shown.append(engine.state.max_epochs)
        data.size = 12

    trainer.run(max_steps=15)
    assert shown == [5, 3, 3]  # it grew before the first batch, with which that is noticed
    assert (trainer.state.epoch, trainer.state.iteration) == (3, 15)


def test_data_shrinking_in_a_pass_ends_it_with_a_warning():
    data = Growing(10)
    trainer = make_trainer(DataLoader(data, batch_size=2))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), Engine.terminate)
    trainer.run(max_epochs=2)
    data.size = 6
    with pytest.warns(UserWarning, match="has 3 batches a pass now, and had 5 when this pass"):
        trainer.run()
    assert (trainer.state.epoch, trainer.state.iteration) == (2, 4 + 3)


def test_data_that_becomes_empty_is_an_error():
    data = Growing(4)
    trainer = make_trainer(DataLoader(data, batch_size=2))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: setattr(data, "size", 0))
    with pytest.raises(ValueError, match="`data` gave no batch in pass 2"):
        trainer.run(max_epochs=2)


# Other data within a run


@pytest.mark.parametrize(
    ("written", "expected", "length"),
    [
        (None, [0, 1, 10, 11, 12, 10, 11, 12], 5),  # with the pass over the new data
        (4, [0, 1, 10, 11, 12, 10, 11, 12], 4),  # epochs of four batches, over the passes
        (2, [0, 1, 10, 11], 2),  # it is full already
    ],
)
def test_an_epoch_ends_with_new_datas_pass_or_at_its_length(written, expected, length):
    old, new = batches_of(4), batches_of(3)
    trainer, order, lengths = make_trainer(old), [], []

    @trainer.on(Events.ITERATION_COMPLETED(once=2))
    def change(engine):
        engine.set_data(new)
        if written is not None:
            engine.state.epoch_length = written

    @trainer.on(Events.ITERATION_STARTED)
    def note(engine):
        batch = engine.state.batch
        is_old = any(batch is each for each in old)
        order.append(position(old, batch) if is_old else 10 + position(new, batch))

    trainer.add_event_handler(
        Events.EPOCH_COMPLETED(once=1), lambda engine: lengths.append(engine.state.epoch_length)
    )
    trainer.run(max_epochs=2)
    assert order == expected
    assert lengths == [length]


@pytest.mark.parametrize(
    "event", [Events.EPOCH_STARTED, Events.DATALOADER_STOP_ITERATION, Events.EPOCH_COMPLETED]
)
@pytest.mark.parametrize("options", [{}, {"epoch_length": 3}], ids=["one pass", "length given"])
def test_an_iterator_on_the_state_continues_as_in_ignite(event, options):
    trainer, engine = make_trainer(), Engine(lambda engine, batch: None)
    seen = []
    for each in (trainer, engine):
        numbers, order = iter(range(9)), []
        known = batches_of(9)

        def three(numbers=numbers, known=known):
            for _ in range(3):
                yield known[next(numbers)]

        each.add_event_handler(
            event, lambda engine, three=three: setattr(engine.state, "dataloader", three())
        )

        @each.on(Events.ITERATION_STARTED)
        def note(engine, order=order, known=known):
            order.append((engine.state.epoch, position(known, engine.state.batch)))

        each.run(three(), max_epochs=3, **options)
        seen.append(order)
    assert seen[0] == seen[1] or event is Events.EPOCH_STARTED
    assert [number for _, number in seen[0]] == [*range(9)]


def test_data_put_on_the_state_at_epoch_start_is_used_at_once():
    trainer, other, seen = make_trainer(batches_of(5)), batches_of(2), []
    trainer.add_event_handler(
        Events.EPOCH_STARTED(once=2), lambda engine: setattr(engine.state, "dataloader", other)
    )
    trainer.add_event_handler(
        Events.ITERATION_STARTED,
        lambda engine: seen.append(any(engine.state.batch is each for each in other)),
    )
    trainer.run(max_epochs=2, epoch_length=2)  # in the middle of the pass over the first data
    assert seen == [False, False, True, True]


def test_a_loader_put_on_the_state_between_runs_is_used():
    trainer, other = make_trainer(batches_of(4)), batches_of(2)
    trainer.run()
    trainer.state.dataloader = other
    trainer.run(max_epochs=3)
    assert trainer.state.iteration == 4 + 2 + 2
    assert trainer.state.dataloader is other


def test_a_validation_changes_neither_length_nor_data():
    trainer = make_trainer(batches_of(4))
    other = batches_of(3)
    Validation(lambda: {"size": len(other)}, every_steps=1).attach(trainer)
    shown = shown_lengths(trainer, EVENTS)
    trainer.run(max_epochs=2)
    assert shown == {1: all_of(4), 2: all_of(4)}


class DrawsWhenTold:
    """A sampler that draws its order in ``set_epoch``, from torch's global generator."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def set_epoch(self, epoch):
        self.order = torch.randperm(self.size).tolist()

    def __iter__(self):
        return iter(self.order)


def test_reading_the_length_draws_no_random_number():
    """``set_epoch`` may draw: the order is that of a loop which calls it once in each epoch."""
    sampler = DrawsWhenTold(8)
    loader = DataLoader(Growing(8), sampler=sampler, batch_size=2)
    trainer, seen, expected = make_trainer(loader), [], []
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: seen.append(engine.state.batch[0])
    )
    seed()
    trainer.run(max_epochs=2)
    seed()
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected += [x for x, _ in loader]
    assert torch.equal(torch.cat(seen), torch.cat(expected))


@pytest.mark.parametrize("length", [0, 2.5, "2"])
def test_a_length_written_between_two_runs_is_checked(length):
    trainer = make_trainer(batches_of(4))
    trainer.run(max_iters=3)
    trainer.state.epoch_length = length
    with pytest.raises(ValueError, match=rf"epoch_length` must be an integer >= 1, got {length!r}"):
        trainer.run(max_iters=9)


def test_a_length_written_between_two_runs_can_complete_the_epoch():
    trainer, ends = make_trainer(batches_of(4)), []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: ends.append(engine.state.iteration)
    )
    trainer.run(max_iters=3)
    trainer.state.epoch_length = 2
    trainer.run(max_iters=7)
    assert ends == [3, 5, 7]


def test_epoch_length_cannot_be_removed_between_runs_without_data():
    trainer = make_trainer(**NO_DATA)
    trainer.run(epoch_length=3, max_iters=2)
    trainer.state.epoch_length = None
    with pytest.raises(ValueError, match="epoch_length` must be a number if the trainer has no"):
        trainer.run(max_iters=9)


def test_epoch_length_cannot_be_removed_without_data():
    trainer = make_trainer(**NO_DATA)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2),
        lambda engine: setattr(engine.state, "epoch_length", None),
    )
    with pytest.raises(ValueError, match="epoch_length` must be a number if the trainer has no"):
        trainer.run(epoch_length=3, max_epochs=2)
