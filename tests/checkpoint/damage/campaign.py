"""Interrupts trainings at random moments, on a real disk, until each has ended in the same bits.

    python -m tests.checkpoint.damage.campaign --kills 300 [DIRECTORY]

A job is a training that is started again each time it was interrupted, on one process or on two
(gloo), with and without loader workers, saving in the foreground or in the background. ``kill`` is
SIGKILL, to all processes or to one of two; ``term`` is SIGTERM to the process group; ``storm`` is a
few SIGTERM and SIGINT to the group within milliseconds. Each start must resume at least what was
told as saved, after a signal all that was committed, and at last the weights are those of a run
that nothing happened to, and ``verify`` finds nothing.

The moments come from ``--seed``, but what a process does at that moment is the machine's affair: a
failure prints the seed and the kind, to be tried again with ``--only``.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.state import GradientState
from accelerate.utils import InitProcessGroupKwargs
from ignite.engine import Events
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks.checkpoint.__main__ import main as checkpoint_command
from ignite_hooks.core.handler import attached
from tests.reference import augmented
from tests.reference import make_trainer
from tests.reference import samples
from tests.reference import seed
from tests.reference import weights

EPOCHS = 4
STEPS = 3 * EPOCHS  # of five batches in windows of two
MAX_INTERRUPTIONS = 5
"""Of one job, before it is left to end."""
PATIENCE = 60
"""Seconds until a start counts as one that hangs."""


class Kind(NamedTuple):
    processes: int
    background: bool
    workers: int
    interruption: str

    def __str__(self):
        ground = "background" if self.background else "foreground"
        return f"{self.interruption}/{self.processes}-processes/{ground}/{self.workers}-workers"


KINDS = [
    Kind(*each)
    for each in itertools.product((1, 2), (False, True), (0, 2), ("kill", "term", "storm"))
]


# In a child


def trainer_of(kind, directory, saving):
    """Dropout, a scheduler, half windows; augmented where no worker draws the random numbers."""
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=20))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, kwargs_handlers=[patience])
    assert accelerator.num_processes == kind.processes
    batches, rank = 5 * kind.processes, accelerator.process_index
    seed(1 + rank)
    if kind.workers:
        data = DataLoader(samples(2 * batches), 2, shuffle=True, num_workers=kind.workers)
    else:
        data = augmented(batches)
    trainer = make_trainer(
        data,
        dropout=0.5,
        accelerator=accelerator,
        lr_scheduler=lambda optimizer: StepLR(optimizer, 2, gamma=0.7),
        checkpoint=saving and SaveCheckpoint(directory, background=kind.background, **saving),
        resume_from=saving and ResumeCheckpoint(directory, on_missing="start"),
    )
    if trainer.resume_report is not None:
        seed(20 + rank)  # what a script draws after it has resumed must not matter
    return trainer


def train(kind, directory, saving, tell):
    trainer = trainer_of(kind, directory, saving)
    tell(resumed=trainer.state.optimizer_step)
    trainer.add_event_handler(Events.STARTED, lambda: tell(running=True))
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED, lambda: tell(step=trainer.state.optimizer_step)
    )

    @trainer.on(TrainEvents.CHECKPOINT_SAVED)
    def tell_step():  # in the background training has gone on meanwhile
        (save,) = attached(trainer, SaveCheckpoint)
        tell(saved=int(save.last_checkpoint.name.removeprefix("step_").split("-")[0]))

    trainer.run(max_epochs=EPOCHS)
    digest = hashlib.sha256(weights(trainer.model).numpy().tobytes()).hexdigest()
    tell(ended=trainer.stop_reason, weights=digest)
    PartialState().wait_for_everyone()  # rank 0 has the store of the others


def be_rank(rank, port, pipe, kind, directory, saving):
    """The whole life of a forked process; it never returns."""
    status = 1

    def tell(**message):
        os.write(pipe, json.dumps({"rank": rank, **message}).encode() + b"\n")  # at once, or not

    try:
        # Workers whose process was killed complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        if kind.processes > 1:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": kind.processes}
            os.environ.update({name: str(value) for name, value in {**address, **ranks}.items()})
        train(kind, directory, saving, tell)
        status = 0
    except BaseException as error:
        tell(failure=f"{type(error).__name__}: {error}"[:1000])
        tell(traceback=traceback.format_exc()[-2500:])
    finally:
        os._exit(status)


# In the parent


class Group:
    """The processes of one start, a process group of their own.

    They stay unreaped, so that the number of the group is nobody else's, until ``bury``.
    """

    def __init__(self, kind, directory, saving):
        self._pipe, writes = os.pipe()
        os.set_blocking(self._pipe, False)
        self._text = b""
        self.told = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pids = []
        self.started = time.monotonic()
        for rank in range(kind.processes):
            pid = os.fork()
            if pid == 0:
                with suppress(OSError):
                    os.setpgid(0, self.pids[0] if self.pids else 0)
                be_rank(rank, port, writes, kind, directory, saving)
            self.pids.append(pid)
            with suppress(OSError):  # the child has done it, and may be dead by now
                os.setpgid(pid, self.pids[0])
        os.close(writes)

    def signal_all(self, number):
        with suppress(ProcessLookupError):
            os.killpg(self.pids[0], number)

    def signal_one(self, rank, number):
        os.kill(self.pids[rank], number)

    def statuses(self):
        """The exit status of each process, None while it runs."""
        return [self._status(pid) for pid in self.pids]

    def _status(self, pid):
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def is_over(self):
        return None not in self.statuses()

    def end(self):
        """The statuses when all have ended; None if they do not."""
        while not self.is_over():
            self.listen()
            if time.monotonic() - self.started > PATIENCE:
                return None
            time.sleep(0.002)
        self.listen()
        return self.statuses()

    def listen(self):
        with suppress(BlockingIOError):
            while text := os.read(self._pipe, 2**16):
                self._text += text
        *lines, self._text = self._text.split(b"\n")
        self.told += [json.loads(line) for line in lines]

    def heard(self, key, rank=0):
        return [each[key] for each in self.told if key in each and each["rank"] == rank]

    def bury(self):
        self.signal_all(signal.SIGKILL)
        for pid in self.pids:
            os.waitpid(pid, 0)
        os.close(self._pipe)


class Problem(Exception):
    """Something that must not happen."""


class Job:
    """One training, started until it ends."""

    def __init__(self, kind, directory, random, final, seconds):
        self.kind, self.directory, self.random = kind, directory, random
        self.final, self.seconds = final, seconds
        self.at_least = 0
        self.counts = Counter()
        self.most_lost = 0
        self._last = None
        self._committed = 0
        signals = [] if kind.interruption == "kill" else ["SIGTERM"]
        if kind.interruption == "storm":
            signals.append("SIGINT")
        every = random.choice([1, 1, 2]) if kind.interruption == "kill" else None
        self.saving = {"every_steps": every, "on_signals": tuple(signals)}

    def run(self, interruptions):
        """Interrupts it so often, unless it ends before; returns how often it was."""
        try:
            while self.counts["interrupted"] < interruptions:
                if self._start(is_interrupted=True):
                    break
            else:
                if not self._start(is_interrupted=False):
                    raise Problem("it was left alone, and did not end")
            self._verify()
        finally:
            if self._last is not None:
                self._last.bury()
        return self.counts["interrupted"]

    def _start(self, is_interrupted):
        """Returns whether it came to its end."""
        group = Group(self.kind, self.directory, self.saving)
        was_hit = is_one = False
        try:
            if is_interrupted:
                was_hit, is_one = self._interrupt(group)
            statuses = group.end()
        finally:  # workers of the one before were alive until now
            if self._last is not None:
                self._last.bury()
            self._last = group
        self.counts["starts"] += 1
        self.counts["interrupted"] += was_hit
        self._judge(group, statuses, was_hit, is_one)
        return has_ended(group)

    def _interrupt(self, group):
        before, within = self.seconds
        if self.random.random() < 0.2:
            self._wait(group, self.random.uniform(0, before))
        else:
            while not (group.heard("running") or group.heard("ended") or group.is_over()):
                self._wait(group, 0.001)
            self._wait(group, self.random.uniform(0, 1.1 * within))
        self._hit_while_running = bool(group.heard("running"))
        if group.is_over():
            return False, False
        if self.kind.interruption == "kill":
            target = self.random.choice([None, *range(self.kind.processes)])
            if target is None or self.kind.processes == 1:
                group.signal_all(signal.SIGKILL)
                return True, False
            group.signal_one(target, signal.SIGKILL)
            return True, True
        group.signal_all(signal.SIGTERM)
        if self.kind.interruption == "storm":
            for _ in range(self.random.randint(1, 4)):
                time.sleep(self.random.uniform(0, 0.005))
                group.signal_all(self.random.choice([signal.SIGTERM, signal.SIGINT]))
        return True, False

    def _wait(self, group, seconds):
        until = time.monotonic() + seconds
        while not group.is_over():
            group.listen()
            if time.monotonic() >= until:
                break
            time.sleep(0.001)
        group.listen()

    def _judge(self, group, statuses, was_hit, is_one):
        kind, told = self.kind, group.told[-12:]
        is_alone = is_one and not all(
            group.heard("resumed", rank) for rank in range(kind.processes)
        )
        if statuses is None and is_alone:
            return  # torch waits for minutes for a peer that was killed before it connected
        if statuses is None:
            raise Problem(f"it hangs: {told}")
        for step in group.heard("resumed"):
            if step < self.at_least:
                raise Problem(f"it resumed at {step}, and {self.at_least} was safe: {told}")
            self.most_lost = max(self.most_lost, self._committed - step)
        ended = group.heard("ended")
        self.at_least = max([self.at_least, *group.heard("saved")])
        self._committed = max([self.at_least, *group.heard("resumed"), *group.heard("step")])
        is_clean = statuses == [0] * kind.processes
        self.counts["clean"] += was_hit and is_clean
        if not was_hit:
            if not is_clean:
                raise Problem(f"it failed by itself, {statuses}: {told}")
        elif kind.interruption == "kill":
            failures = [
                text for rank in range(kind.processes) for text in group.heard("failure", rank)
            ]
            if failures and not is_one:
                raise Problem(f"it failed before it was killed: {told}")
        elif self._hit_while_running and not ended:
            was_over = STEPS in group.heard("saved")  # and the run was, when the signal came
            if kind.interruption == "term" and not was_over:
                raise Problem(f"SIGTERM did not end the run well, {statuses}: {told}")
            self.at_least = self._committed  # a later signal may kill, when all is saved
        elif self._hit_while_running:
            self.at_least = self._committed
        if has_ended(group) and group.heard("weights") != [self.final]:
            raise Problem("it ended in other bits")

    def _verify(self):
        with open(os.devnull, "w") as nowhere:
            found, sys.stdout = sys.stdout, nowhere
            try:
                status = checkpoint_command(["verify", str(self.directory)])
            finally:
                sys.stdout = found
        if status:
            raise Problem(f"`verify` exits with {status}")


def has_ended(group):
    """Whether it came to its last epoch; one that had before runs nothing, and gives no reason."""
    ended = group.heard("ended")
    return bool(ended) and ended[0] not in ("SIGTERM", "SIGINT")


def unbroken(kind):
    """The weights of a run that nothing happens to and that saves nothing."""
    return calmly(Group(kind, None, None), kind)[0]


def durations(kind, directory, final):
    """The seconds of a start until it runs, and from then on."""
    saving = {"every_steps": 1 if kind.interruption == "kill" else None, "on_signals": ()}
    found, running, ended = calmly(Group(kind, directory, saving), kind)
    if found != final:
        raise SystemExit(f"{kind} ends in other bits as it saves")
    return running, ended - running


def calmly(group, kind):
    """The weights at the end, and after how many seconds it ran and had ended."""
    running = ended = None
    while not group.is_over():
        group.listen()
        now = time.monotonic() - group.started
        running = now if running is None and group.heard("running") else running
        ended = now if ended is None and group.heard("ended") else ended
        time.sleep(0.001)
    statuses = group.end()
    group.bury()
    if statuses != [0] * kind.processes or None in (running, ended):
        raise SystemExit(f"{kind} fails without any interruption: {group.told}")
    (final,) = group.heard("weights")
    return final, running, ended


def warm_up(directory):
    """Imports what is imported at first use; children are forked with it."""
    alone = Kind(1, False, 0, "kill")
    for _ in range(2):
        saving = {"every_steps": 1, "on_signals": ()}
        train(alone, directory / "warm", saving, lambda **message: None)
    shutil.rmtree(directory / "warm")


def campaign(kills, kinds, seed_number, directory):
    """Returns whether all went well; prints a table."""
    finals, rows, is_well = {}, [], True
    for index, kind in enumerate(kinds):
        left = kills // len(kinds) + (index < kills % len(kinds))
        key = (kind.processes, kind.workers)
        if left and key not in finals:
            finals[key] = unbroken(kind)
        counts, most_lost, number, started = Counter(), 0, 0, time.monotonic()
        if left:
            seconds = durations(kind, directory / "calm", finals[key])
            shutil.rmtree(directory / "calm")
        while left > 0:
            random = Random(f"{seed_number}/{kind}/{number}")
            place = directory / f"{str(kind).replace('/', '_')}_{number}"
            job = Job(kind, place, random, finals[key], seconds)
            try:
                left -= job.run(min(left, random.randint(1, MAX_INTERRUPTIONS)))
            except Problem as problem:
                is_well = False
                counts["failures"] += 1
                print(f"FAILED: {kind}, job {number}, seed {seed_number}: {problem}")
                print(f"  again: --seed {seed_number} --only {kind}; left as it is: {place}")
                left -= max(1, job.counts["interrupted"])
            else:
                shutil.rmtree(place)
            counts += job.counts
            counts["jobs"] += 1
            most_lost = max(most_lost, job.most_lost)
            number += 1
        rows.append((kind, counts, most_lost, time.monotonic() - started))
    show(rows, seed_number)
    return is_well


def show(rows, seed_number):
    head = "kind", "jobs", "starts", "interrupted", "clean exits", "steps lost", "failures", "s"
    print(f"seed {seed_number}")
    print(f"{head[0]:42}" + "".join(f"{each:>13}" for each in head[1:]))
    total = Counter()
    for kind, counts, most_lost, seconds in rows:
        numbers = [counts[name] for name in ("jobs", "starts", "interrupted", "clean")]
        cells = [*numbers, f"<= {most_lost}", counts["failures"], f"{seconds:.0f}"]
        print(f"{kind!s:42}" + "".join(f"{each:>13}" for each in cells))
        total += counts
    print(
        f"{total['interrupted']} interruptions of {total['starts']} starts of {total['jobs']} jobs,"
        f" {total['failures']} failures"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", nargs="?", help="on the disk to try; default: a temporary one")
    parser.add_argument("--kills", type=int, default=300, help="interruptions in all")
    parser.add_argument("--seed", type=int, default=None, help="of the random moments")
    parser.add_argument("--only", default="", help="kinds that have this in their name")
    options = parser.parse_args(arguments)
    kinds = [kind for kind in KINDS if all(word in str(kind) for word in options.only.split())]
    if not kinds:
        parser.error(f"--only {options.only!r} is in none of {', '.join(map(str, KINDS))}")
    seed_number = Random().randrange(10**6) if options.seed is None else options.seed
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "resumed from")  # it is seen what comes of it
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    directory = Path(tempfile.mkdtemp(prefix="campaign-", dir=options.directory))
    warm_up(directory)
    is_well = campaign(options.kills, kinds, seed_number, directory)
    if is_well:
        shutil.rmtree(directory)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
