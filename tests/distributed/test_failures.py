import logging
import os
import select
import signal
import sys
import threading
from datetime import timedelta
from traceback import walk_stack

import pytest
import torch
import torch._dynamo  # DDP imports it, which takes seconds: once here, and not in each rank
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from ignite.engine import Events
from torch import distributed
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.config import RunSettings
from ignite_hooks.processes import peer_watch
from ignite_hooks.processes.stalled_ranks import StalledRanks
from ignite_hooks.processes.store_connection import StoreConnection
from tests.distributed.forked import on_ranks

pytestmark = pytest.mark.distributed

FOREVER = 300  # seconds: far beyond the limit of a test
AT_3 = Events.ITERATION_STARTED(once=3)


def make_trainer(timeout=FOREVER, workers=0, build=create_supervised_trainer, **settings):
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))
    accelerator = settings.pop("accelerator", None)
    accelerator = accelerator or Accelerator(cpu=True, kwargs_handlers=[group])
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    data = TensorDataset(torch.randn(16, 2), torch.randn(16, 1))
    loader = DataLoader(data, batch_size=2, num_workers=workers)
    optimizer = settings.pop("optimizer", torch.optim.SGD)(model.parameters(), lr=0.1)
    return build(model, optimizer, F.mse_loss, loader, accelerator=accelerator, **settings)


def failure_of(function):
    """Calls a function that fails; returns its error's class, text, cause and notes."""
    try:
        function()
    except BaseException as error:
        notes = getattr(error, "__notes__", [])
        return [type(error).__name__, str(error), str(error.__cause__), notes]
    return None


def fail(*_):
    raise ArithmeticError("has had it")


def stand():
    """Waits in Python, where a signal reaches it."""
    threading.Event().wait(FOREVER)


def hurry(**seconds):
    """Sets time limits in this process, which is a forked one."""
    peer_watch.time_limits = peer_watch.time_limits._replace(**seconds)


def test_failure_and_its_place_are_raised_on_a_rank_in_python(tmp_path):
    both_ended = [os.pipe(), os.pipe()]

    def train(rank):
        trainer = make_trainer()
        trainer.add_event_handler(AT_3, fail if rank == 1 else stand)
        error = failure_of(lambda: trainer.run(max_epochs=2))
        os.write(both_ended[rank][1], b".")
        os.read(both_ended[1 - rank][0], 1)  # the process that fails stays alive
        return [*error, trainer.stop_reason, trainer.state.iteration]

    told, own = (outcome.found for outcome in on_ranks(train, tmp_path))
    assert own[:2] == ["ArithmeticError", "has had it"]
    line = fail.__code__.co_firstlineno + 1
    place = "epoch 1, iteration 3, step 2, at ITERATION_STARTED"
    text = f"ArithmeticError: has had it ({place}; test_failures.py, line {line}, in fail)"
    assert told[:2] == ["RuntimeError", f"rank 1 failed: {text}"]
    assert told[4:] == own[4:] == ["exception", 2]


def until_rank_0_has_ended(rank, pipe, limit=FOREVER):
    """Returns whether rank 0 ends within the limit; on rank 0 returns at once."""
    if rank == 0:
        os.write(pipe[1], str(os.getpid()).encode())
        return None
    process = os.pidfd_open(int(os.read(pipe[0], 20)))
    return bool(select.select([process], [], [], limit)[0])


def test_rank_blocked_in_a_collective_is_ended(tmp_path):
    pipe = os.pipe()

    def train(rank):
        trainer = make_trainer(workers=2)
        if rank == 1:
            trainer.add_event_handler(AT_3, fail)
            trainer.add_event_handler(
                Events.EXCEPTION_RAISED, lambda engine, error: until_rank_0_has_ended(1, pipe)
            )
        else:
            until_rank_0_has_ended(0, pipe)
        at_2 = Events.ITERATION_STARTED(once=2)  # the start of workers flushes what is there
        trainer.add_event_handler(at_2, lambda: print("unflushed"))
        return failure_of(lambda: trainer.run(max_epochs=2))

    ended, failed = on_ranks(train, tmp_path, exit_codes=(1, 0))
    assert failed.found is None  # the handler of EXCEPTION_RAISED has handled it
    assert "rank 1 failed: ArithmeticError: has had it (epoch 1, iteration 3" in ended.output
    assert "is ended with exit code 1" in ended.output
    assert "unflushed" in ended.output


def test_rank_with_wait_raises_after_the_timeout(tmp_path):
    both_ended = [os.pipe(), os.pipe()]

    def train(rank):
        hurry(poll=0.02, same_failure=0.02, unblocking=0.02)
        logging.getLogger(peer_watch.__name__).addHandler(logging.lastResort)  # stderr
        trainer = make_trainer(timeout=2, build=RunSettings(on_peer_failure="wait").build)
        if rank == 1:
            trainer.add_event_handler(AT_3, fail)
        error = failure_of(lambda: trainer.run(max_epochs=2))
        os.write(both_ended[rank][1], b".")
        os.read(both_ended[1 - rank][0], 1)
        return error

    waited, _ = on_ranks(train, tmp_path)
    assert waited.found[1].startswith("rank 1 failed: ArithmeticError")
    assert "has had it (epoch 1, iteration 3" in waited.output
    assert "This rank waits for the timeout of its collective" in waited.output


@pytest.mark.parametrize("failing", [0, 1])  # rank 0 holds the store
def test_collective_error_becomes_the_failure_that_caused_it(tmp_path, failing):
    def train(rank):
        hurry(same_failure=FOREVER)  # the collective fails first
        trainer = make_trainer()
        if rank == failing:
            trainer.add_event_handler(AT_3, fail)
            trainer.run(max_epochs=2)
        return failure_of(lambda: trainer.run(max_epochs=2))

    outcomes = on_ranks(train, tmp_path, exit_codes=(1, 0) if failing == 0 else (0, 1))
    kind, text, cause, _ = outcomes[1 - failing].found
    assert (kind, text[:30]) == ("RuntimeError", f"rank {failing} failed: ArithmeticError")
    assert "gloo" in cause


@pytest.mark.parametrize(
    ("killed", "note"), [(0, "rank 0, or the launcher, has ended"), (1, "may have been killed")]
)
def test_collective_error_after_a_kill_has_a_note(tmp_path, killed, note):
    def train(rank):
        trainer = make_trainer()
        if rank == killed:
            trainer.add_event_handler(AT_3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        return failure_of(lambda: trainer.run(max_epochs=2))

    codes = [0, 0]
    codes[killed] = -signal.SIGKILL
    outcome = on_ranks(train, tmp_path, exit_codes=codes)[1 - killed]
    assert "gloo" in outcome.found[1]
    assert sys.version_info < (3, 11) or note in outcome.found[3][0]  # without notes it is logged


def test_ranks_can_run_again_after_failing_in_the_same_way(tmp_path):
    def train(rank):
        trainer = make_trainer()
        if rank == 0:  # comes to it when it has been told
            told = trainer.add_event_handler(AT_3, until_failure_is_read)
        failing = trainer.add_event_handler(AT_3, fail)
        errors = [failure_of(lambda: trainer.run(max_epochs=2))[:2] for _ in range(2)]
        failing.remove()
        if rank == 0:
            told.remove()
        trainer.run(max_epochs=2)
        return [errors, trainer.state.iteration, trainer.stop_reason]

    for outcome in on_ranks(train, tmp_path):
        assert outcome.found == [[["ArithmeticError", "has had it"]] * 2, 8, "max_epochs"]


def until_failure_is_read():
    """Returns when this rank has read the failure of another, and waits for one of its own."""
    until_watcher_is_in("_end_run")


def until_watcher_is_in(function):
    """Returns when the watcher thread is in a function."""
    (watcher,) = (each for each in threading.enumerate() if each.name.startswith("ignite_hooks"))
    names = []
    while function not in names:
        frames = walk_stack(sys._current_frames()[watcher.ident])
        names = [frame.f_code.co_name for frame, _ in frames]


class Unsaveable:
    """Has no state on rank 1, for as long as it fails."""

    def __init__(self, rank):
        self.rank, self.fails = rank, False

    def state_dict(self):
        if self.fails and self.rank == 1:
            raise OSError("no state")
        return {"rank": self.rank}

    def load_state_dict(self, state_dict):
        """Nothing is loaded here."""


def test_ranks_can_run_again_after_a_shared_failure(tmp_path):
    def ends(rank):
        own = Unsaveable(rank)
        save = SaveCheckpoint(tmp_path / "checkpoints", every_steps=1, also={"own": own})
        trainer = make_trainer(checkpoint=save)

        @trainer.on(AT_3)
        def break_state():
            own.fails = True

        error = failure_of(trainer.run)
        own.fails = False
        trainer.run(max_epochs=2)
        return [*error[:2], trainer.state.iteration]

    first, second = (outcome.found for outcome in on_ranks(ends, tmp_path))
    assert first == ["RuntimeError", "process 1: OSError: no state", 8]
    assert second == ["OSError", "no state", 8]


def test_run_after_different_failures_asks_for_a_restart(tmp_path):
    def train(rank):
        trainer = make_trainer()
        if rank == 1:
            trainer.add_event_handler(AT_3, fail)
        else:
            trainer.add_event_handler(AT_3, stand)
        failure_of(lambda: trainer.run(max_epochs=2))
        return failure_of(lambda: trainer.run(max_epochs=2))

    for outcome in on_ranks(train, tmp_path):
        assert "rank 1 failed: ArithmeticError: has had it" in outcome.found[1]
        assert "end all processes and start them again" in outcome.found[1]


def test_each_rank_raises_its_own_error_for_a_wrong_limit(tmp_path):
    has_failed = os.pipe()

    def train(rank):
        hurry(acknowledgement=0)
        trainer = make_trainer()
        if rank == 0:
            os.read(has_failed[0], 1)  # begins its run when the other has failed in it
        error = failure_of(lambda: trainer.run(max_epochs=0))
        os.write(has_failed[1], b".")
        trainer.run(max_epochs=1)
        return [*error[:2], trainer.state.iteration]

    for outcome in on_ranks(train, tmp_path):
        kind, text, iteration = outcome.found
        assert (kind, iteration) == ("ValueError", 4)
        assert text.startswith("`max_epochs` must be")


def test_failure_caught_by_a_handler_is_reported(tmp_path):
    def train(rank):
        trainer = make_trainer()
        if rank == 1:
            trainer.add_event_handler(AT_3, fail)
            trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: None)
        else:
            trainer.add_event_handler(AT_3, stand)
        return failure_of(lambda: trainer.run(max_epochs=2))

    told, handled = on_ranks(train, tmp_path)
    assert told.found[1].startswith("rank 1 failed: ArithmeticError")
    assert handled.found is None


def test_failure_of_a_peer_is_raised_after_the_step(tmp_path):
    def train(rank):
        class Slow(torch.optim.SGD):
            def step(self, closure=None):
                super().step(closure)
                if rank == 0 and trainer.state.optimizer_step == 2:
                    until_watcher_is_in("_wait_for_step")  # longer than a blocked rank is given
                    steps.append("whole")

        steps = []
        trainer = make_trainer(optimizer=Slow)
        if rank == 1:
            at_end_of_3 = Events.ITERATION_COMPLETED(once=3)
            trainer.add_event_handler(at_end_of_3, fail)
        error = failure_of(lambda: trainer.run(max_epochs=2))
        return [steps, error[1][:13], trainer.state.optimizer_step]

    told, _ = on_ranks(train, tmp_path)
    assert told.found == [["whole"], "rank 1 failed", 3]


def test_failure_after_a_caught_one_in_an_inner_run_is_reported(tmp_path):
    def train(rank):
        trainer = make_trainer()
        inner = make_trainer(accelerator=trainer.accelerator)
        inner.add_event_handler(Events.ITERATION_STARTED(once=2), fail)
        trainer.add_event_handler(
            Events.ITERATION_STARTED(once=2), lambda: failure_of(lambda: inner.run(max_epochs=1))
        )
        trainer.add_event_handler(AT_3, fail if rank == 1 else stand)
        return failure_of(lambda: trainer.run(max_epochs=2))

    told, own = on_ranks(train, tmp_path)
    assert "has had it (epoch 1, iteration 3" in told.found[1]
    assert own.found[:2] == ["ArithmeticError", "has had it"]


def test_failure_on_rank_2_ends_the_runs_of_both_others(tmp_path):
    def train(rank):
        trainer = make_trainer()
        trainer.add_event_handler(AT_3, fail if rank == 2 else stand)
        return failure_of(lambda: trainer.run(max_epochs=2))

    found = [outcome.found[1][:13] for outcome in on_ranks(train, tmp_path, exit_codes=(0, 0, 0))]
    assert found == ["rank 2 failed", "rank 2 failed", "has had it"]


def test_run_leaves_no_thread_no_handler_and_no_output(tmp_path):
    def train(rank):
        found = signal.getsignal(signal.SIGURG)
        trainer = make_trainer(workers=2)
        threads = []
        trainer.add_event_handler(AT_3, lambda: threads.append(names_of_threads()))
        for epochs in (1, 2):
            trainer.run(max_epochs=epochs)
        return [threads, names_of_threads(), signal.getsignal(signal.SIGURG) == found]

    for outcome in on_ranks(train, tmp_path):
        within, after, is_same_handler = outcome.found
        assert within == [["ignite_hooks peers"]]
        assert (after, is_same_handler, outcome.output) == ([], True, "")


def test_signal_handler_set_in_a_run_is_kept(tmp_path):
    def train(rank):
        def handle(*_):
            pass

        trainer = make_trainer()
        trainer.add_event_handler(AT_3, lambda: signal.signal(signal.SIGURG, handle))
        trainer.run(max_epochs=1)
        return signal.getsignal(signal.SIGURG) is handle

    assert [outcome.found for outcome in on_ranks(train, tmp_path)] == [True, True]


def test_rank_that_ends_first_does_not_disturb_others(tmp_path):
    pipe = os.pipe()

    def train(rank):
        hurry(poll=0.02)
        trainer = make_trainer()
        trainer.add_event_handler(Events.COMPLETED, lambda: until_rank_0_has_ended(rank, pipe))
        trainer.run(max_epochs=1)
        return trainer.stop_reason

    assert [outcome.found for outcome in on_ranks(train, tmp_path)] == ["max_epochs"] * 2


def test_rank_0_keeps_store_until_others_have_ended(tmp_path):
    pipe = os.pipe()

    def train(rank):
        hurry(acknowledgement=FOREVER)
        trainer = make_trainer()
        found = []
        trainer.add_event_handler(
            Events.COMPLETED, lambda: found.append(until_rank_0_has_ended(rank, pipe, limit=0.5))
        )
        trainer.run(max_epochs=1)
        return found

    assert [outcome.found for outcome in on_ranks(train, tmp_path)] == [[None], [False]]


def test_rank_0_does_not_wait_for_rank_in_next_run(tmp_path):
    has_begun = os.pipe()

    class Data(list):
        def __len__(self):  # is asked for before the run exchanges anything
            os.write(has_begun[1], b".")
            return super().__len__()

    def train(rank):
        hurry(acknowledgement=FOREVER)
        trainer = make_trainer()
        if rank == 0:
            trainer.add_event_handler(Events.COMPLETED(once=1), lambda: os.read(has_begun[0], 1))
        trainer.run(max_epochs=1)
        batches = [(torch.randn(2, 2), torch.randn(2, 1))] * 4
        trainer.run(Data(batches) if rank == 1 else batches, max_epochs=2)
        return trainer.state.iteration

    assert [outcome.found for outcome in on_ranks(train, tmp_path, limit=15)] == [8, 8]


def names_of_threads():
    return [each.name for each in threading.enumerate() if each.name.startswith("ignite_hooks")]


@pytest.mark.parametrize(
    ("event", "place", "place_of_other"),
    [
        (
            Events.ITERATION_COMPLETED(once=2),
            "epoch 1, iteration 2, step 2, at ITERATION_COMPLETED",
            "epoch 1, iteration 3, step 2, at ",
        ),
        (  # where the other waits at the end of the event, at another line
            Events.EPOCH_COMPLETED,
            "epoch 1, iteration 4, step 4, at EPOCH_COMPLETED",
            "epoch 1, iteration 4, step 4, at EPOCH_COMPLETED",
        ),
    ],
    ids=["in a step", "at the end of an epoch"],
)
def test_ranks_waiting_at_different_places_are_warned_of(tmp_path, event, place, place_of_other):
    read_end, write_end = os.pipe()

    def train(rank):
        hurry(poll=0.02, place_check=0.05, stalled=0.2)
        warned = threading.Event()
        texts = []

        class Noting(logging.Handler):
            def emit(self, record):
                texts.append(record.getMessage())
                if len(texts) == 2:
                    warned.set()
                    os.write(write_end, b"!")

        logging.getLogger(peer_watch.__name__).addHandler(Noting())
        trainer = make_trainer()
        if rank == 0:
            trainer.add_event_handler(
                event, lambda: [warned.wait(FOREVER), *(os.read(read_end, 1) for _ in "01")]
            )
        trainer.run(max_epochs=1)
        return texts

    for outcome in on_ranks(train, tmp_path):
        first, second = outcome.found[:2]
        assert first == second
        assert f"rank 0: {place}; test_failures.py, line " in first
        assert f"rank 1: {place_of_other}" in first


def test_no_warning_for_long_work_at_the_same_place(tmp_path):
    def train(rank):
        hurry(poll=0.02, place_check=0.02, stalled=0.1)
        texts, checks = [], []
        done = threading.Event()
        check = StalledRanks.check

        def noting(self, *arguments):
            texts.append(check(self, *arguments))
            checks.append(self)
            if len(checks) == 20:  # 0.4 s at the least
                done.set()

        StalledRanks.check = noting
        trainer = make_trainer()
        at_end_of_2 = Events.ITERATION_COMPLETED(once=2)
        trainer.add_event_handler(at_end_of_2, lambda: done.wait(FOREVER))
        trainer.add_event_handler(at_end_of_2, trainer.accelerator.wait_for_everyone)
        trainer.run(max_epochs=1)
        return [each for each in texts if each]

    assert [outcome.found for outcome in on_ranks(train, tmp_path)] == [[], []]


def test_single_process_has_no_thread(tmp_path):
    def train(rank):
        distributed.init_process_group("gloo")
        trainer = make_trainer(accelerator=Accelerator(cpu=True))
        threads = []
        trainer.add_event_handler(AT_3, lambda: threads.append(names_of_threads()))
        trainer.run(max_epochs=1)
        return threads

    (outcome,) = on_ranks(train, tmp_path, exit_codes=(0,))
    assert outcome.found == [[]]


def test_value_of_on_peer_failure_is_checked():
    with pytest.raises(ValueError, match=r"`on_peer_failure` must be .*got 'stay'"):
        make_trainer(accelerator=Accelerator(cpu=True), on_peer_failure="stay")


def test_store_without_clone_is_reached_by_a_second_client(monkeypatch):
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    group = distributed.PrefixStore("group", server)
    monkeypatch.delattr(distributed.Store, "clone", raising=False)
    first, second = (StoreConnection(group, timedelta(seconds=5)) for _ in range(2))
    other = StoreConnection(distributed.PrefixStore("other", server), timedelta(seconds=5))
    first.put("key", "text")
    first.put_if_empty("key", "other")
    assert [each.find("key") for each in (first, second, other)] == ["text", "text", ""]


def test_store_without_second_connection_is_named(monkeypatch, tmp_path):
    monkeypatch.delattr(distributed.Store, "clone", raising=False)
    with pytest.raises(NotImplementedError, match="FileStore has no second connection"):
        StoreConnection(distributed.FileStore(str(tmp_path / "store"), 1), timedelta(seconds=5))
