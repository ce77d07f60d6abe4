"""Interrupts training runs at random times, on a real disk, until each has ended in the same bits.

    python -m tests.checkpoint.damage.campaign --kills 300 [DIRECTORY]

A job is a run that is started again each time it was interrupted, on one process or on two
(gloo), with and without loader workers, saving in the foreground or in the background. ``kill`` is
SIGKILL, to all processes or to one of two; ``term`` is SIGTERM to the process group; ``storm`` is a
few SIGTERM and SIGINT to the group within milliseconds.

Each start must resume at least at the last step reported as saved, and after a signal at the last
committed step. In the end the weights must be those of an uninterrupted run, and ``verify`` must
find no damage.

``--seed`` determines the times of the interruptions, but not how far a process is by then. A
failure prints the seed and the scenario, to be tried again with ``--only``.
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
from ignite_hooks.core.handler import attached_handlers
from tests.reference import augmented
from tests.reference import make_trainer
from tests.reference import samples
from tests.reference import seed
from tests.reference import weights

EPOCHS = 4
STEPS = 3 * EPOCHS  # of five batches in windows of two
MAX_INTERRUPTIONS = 5
"""The interruptions of one job, before it may run to its end."""
PATIENCE = 60
"""Seconds until a start counts as hanging."""


class Scenario(NamedTuple):
    processes: int
    background: bool
    workers: int
    interruption: str

    def __str__(self):
        ground = "background" if self.background else "foreground"
        return f"{self.interruption}/{self.processes}-processes/{ground}/{self.workers}-workers"


SCENARIOS = [
    Scenario(*each)
    for each in itertools.product((1, 2), (False, True), (0, 2), ("kill", "term", "storm"))
]


# In a child


def trainer_of(scenario, directory, saving):
    """Returns a trainer with dropout, a scheduler and half windows.

    The data are augmented if no worker draws the random numbers.
    """
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=20))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, kwargs_handlers=[patience])
    assert accelerator.num_processes == scenario.processes
    batches, rank = 5 * scenario.processes, accelerator.process_index
    seed(1 + rank)
    if scenario.workers:
        data = DataLoader(samples(2 * batches), 2, shuffle=True, num_workers=scenario.workers)
    else:
        data = augmented(batches)
    trainer = make_trainer(
        data,
        dropout=0.5,
        accelerator=accelerator,
        lr_scheduler=lambda optimizer: StepLR(optimizer, 2, gamma=0.7),
        checkpoint=saving and SaveCheckpoint(directory, background=scenario.background, **saving),
        resume_from=saving and ResumeCheckpoint(directory, on_missing="start"),
    )
    if trainer.resume_report is not None:
        seed(20 + rank)  # what a script draws after it has resumed must not matter
    return trainer


def train(scenario, directory, saving, report):
    trainer = trainer_of(scenario, directory, saving)
    report(resumed=trainer.state.optimizer_step)
    trainer.add_event_handler(Events.STARTED, lambda: report(running=True))
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED, lambda: report(step=trainer.state.optimizer_step)
    )

    @trainer.on(TrainEvents.CHECKPOINT_SAVED)
    def report_saved():  # with background saves the training is further by now
        (save,) = attached_handlers(trainer, SaveCheckpoint)
        report(saved=int(save.last_checkpoint.name.removeprefix("step_").split("-")[0]))

    trainer.run(max_epochs=EPOCHS)
    digest = hashlib.sha256(weights(trainer.model).numpy().tobytes()).hexdigest()
    report(ended=trainer.stop_reason, weights=digest)
    PartialState().wait_for_everyone()  # rank 0 has the store of the others


def run_rank(rank, port, pipe, scenario, directory, saving):
    """Runs one rank in a forked process, and never returns."""
    status = 1

    def report(**message):
        # One write, so that a kill leaves a whole line or nothing.
        os.write(pipe, json.dumps({"rank": rank, **message}).encode() + b"\n")

    try:
        # Workers print errors when their process is killed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        if scenario.processes > 1:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": scenario.processes}
            os.environ.update({name: str(value) for name, value in {**address, **ranks}.items()})
        train(scenario, directory, saving, report)
        status = 0
    except BaseException as error:
        report(failure=f"{type(error).__name__}: {error}"[:1000])
        report(traceback=traceback.format_exc()[-2500:])
    finally:
        os._exit(status)


# In the parent


class Group:
    """The processes of one start, in one process group.

    They stay unreaped until ``reap``, so that no other process can get the number of the group.
    """

    def __init__(self, scenario, directory, saving):
        self._pipe, writes = os.pipe()
        os.set_blocking(self._pipe, False)
        self._text = b""
        self.messages = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pids = []
        self.started = time.monotonic()
        for rank in range(scenario.processes):
            pid = os.fork()
            if pid == 0:
                with suppress(OSError):
                    os.setpgid(0, self.pids[0] if self.pids else 0)
                run_rank(rank, port, writes, scenario, directory, saving)
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
        """Returns the exit status of each process, None while it runs."""
        return [self._status(pid) for pid in self.pids]

    def _status(self, pid):
        child = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if child is None:
            return None
        return child.si_status if child.si_code == os.CLD_EXITED else -child.si_status

    def is_over(self):
        return None not in self.statuses()

    def end(self):
        """Waits for the end of all processes; returns their statuses, or None if they hang."""
        while not self.is_over():
            self.read_messages()
            if time.monotonic() - self.started > PATIENCE:
                return None
            time.sleep(0.002)
        self.read_messages()
        return self.statuses()

    def read_messages(self):
        with suppress(BlockingIOError):
            while text := os.read(self._pipe, 2**16):
                self._text += text
        *lines, self._text = self._text.split(b"\n")
        self.messages += [json.loads(line) for line in lines]

    def values(self, key, rank=0):
        return [each[key] for each in self.messages if key in each and each["rank"] == rank]

    def reap(self):
        self.signal_all(signal.SIGKILL)
        for pid in self.pids:
            os.waitpid(pid, 0)
        os.close(self._pipe)


class Problem(Exception):
    """A result that must not happen."""


class Job:
    """A run that is started again until it has ended."""

    def __init__(self, scenario, directory, random, final, seconds):
        self.scenario, self.directory, self.random = scenario, directory, random
        self.final, self.seconds = final, seconds
        self.safe_step = 0
        self.counts = Counter()
        self.max_steps_lost = 0
        self._last = None
        self._committed = 0
        signals = [] if scenario.interruption == "kill" else ["SIGTERM"]
        if scenario.interruption == "storm":
            signals.append("SIGINT")
        every = random.choice([1, 1, 2]) if scenario.interruption == "kill" else None
        self.saving = {"every_steps": every, "on_signals": tuple(signals)}

    def run(self, interruptions):
        """Interrupts the training until it ends, or so often; returns the number of times."""
        try:
            while self.counts["interrupted"] < interruptions:
                if self._start(is_interrupted=True):
                    break
            else:
                if not self._start(is_interrupted=False):
                    raise Problem("it was not interrupted, and did not end")
            self._verify()
        finally:
            if self._last is not None:
                self._last.reap()
        return self.counts["interrupted"]

    def _start(self, is_interrupted):
        """Starts the training once; returns whether it has ended."""
        group = Group(self.scenario, self.directory, self.saving)
        was_interrupted = hit_one_process = False
        try:
            if is_interrupted:
                was_interrupted, hit_one_process = self._interrupt(group)
            statuses = group.end()
        finally:  # workers of the start before may have lived until now
            if self._last is not None:
                self._last.reap()
            self._last = group
        self.counts["starts"] += 1
        self.counts["interrupted"] += was_interrupted
        self._judge(group, statuses, was_interrupted, hit_one_process)
        return has_ended(group)

    def _interrupt(self, group):
        startup_seconds, running_seconds = self.seconds
        if self.random.random() < 0.2:
            self._wait(group, self.random.uniform(0, startup_seconds))
        else:
            while not (group.values("running") or group.values("ended") or group.is_over()):
                self._wait(group, 0.001)
            self._wait(group, self.random.uniform(0, 1.1 * running_seconds))
        self._was_running = bool(group.values("running"))
        if group.is_over():
            return False, False
        if self.scenario.interruption == "kill":
            target = self.random.choice([None, *range(self.scenario.processes)])
            if target is None or self.scenario.processes == 1:
                group.signal_all(signal.SIGKILL)
                return True, False
            group.signal_one(target, signal.SIGKILL)
            return True, True
        group.signal_all(signal.SIGTERM)
        if self.scenario.interruption == "storm":
            for _ in range(self.random.randint(1, 4)):
                time.sleep(self.random.uniform(0, 0.005))
                group.signal_all(self.random.choice([signal.SIGTERM, signal.SIGINT]))
        return True, False

    def _wait(self, group, seconds):
        until = time.monotonic() + seconds
        while not group.is_over():
            group.read_messages()
            if time.monotonic() >= until:
                break
            time.sleep(0.001)
        group.read_messages()

    def _judge(self, group, statuses, was_interrupted, hit_one_process):
        scenario, messages = self.scenario, group.messages[-12:]
        never_connected = hit_one_process and not all(
            group.values("resumed", rank) for rank in range(scenario.processes)
        )
        if statuses is None and never_connected:
            return  # torch waits for minutes for a peer that was killed before it connected
        if statuses is None:
            raise Problem(f"it hangs: {messages}")
        for step in group.values("resumed"):
            if step < self.safe_step:
                raise Problem(f"it resumed at {step}, and {self.safe_step} was safe: {messages}")
            self.max_steps_lost = max(self.max_steps_lost, self._committed - step)
        ended = group.values("ended")
        self.safe_step = max([self.safe_step, *group.values("saved")])
        self._committed = max([self.safe_step, *group.values("resumed"), *group.values("step")])
        exited_cleanly = statuses == [0] * scenario.processes
        self.counts["clean"] += was_interrupted and exited_cleanly
        if not was_interrupted:
            if not exited_cleanly:
                raise Problem(f"it failed by itself, {statuses}: {messages}")
        elif scenario.interruption == "kill":
            failures = [
                text for rank in range(scenario.processes) for text in group.values("failure", rank)
            ]
            if failures and not hit_one_process:
                raise Problem(f"it failed before it was killed: {messages}")
        elif self._was_running and not ended:
            was_finished = STEPS in group.values("saved")  # the run had ended when the signal came
            if scenario.interruption == "term" and not was_finished:
                raise Problem(f"SIGTERM did not end the run well, {statuses}: {messages}")
            self.safe_step = self._committed  # a later signal may kill, when all is saved
        elif self._was_running:
            self.safe_step = self._committed
        if has_ended(group) and group.values("weights") != [self.final]:
            raise Problem(f"it ended in other bits, by {group.values('ended')}: {messages}")

    def _verify(self):
        with open(os.devnull, "w") as nowhere:
            stdout, sys.stdout = sys.stdout, nowhere
            try:
                status = checkpoint_command(["verify", str(self.directory)])
            finally:
                sys.stdout = stdout
        if status:
            raise Problem(f"`verify` exits with {status}")


def has_ended(group):
    """Returns whether the run has ended and was not stopped by a signal.

    A run that was finished before trains nothing, and gives no reason.
    """
    ended = group.values("ended")
    # The reason names the rank, such as "SIGTERM on rank 0", if only that one had the signal yet.
    return bool(ended) and str(ended[0]).partition(" on rank ")[0] not in ("SIGTERM", "SIGINT")


def uninterrupted_weights(scenario):
    """Returns the weights of an uninterrupted run without checkpoints."""
    return measure(Group(scenario, None, None), scenario)[0]


def measure_durations(scenario, directory, final):
    """Returns the seconds from the start of the processes to the run, and those of the run."""
    saving = {"every_steps": 1 if scenario.interruption == "kill" else None, "on_signals": ()}
    weights_found, running, ended = measure(Group(scenario, directory, saving), scenario)
    if weights_found != final:
        raise SystemExit(f"{scenario} ends in other bits when it saves")
    return running, ended - running


def measure(group, scenario):
    """Returns the final weights, and the seconds until the run began and until it ended."""
    running = ended = None
    while not group.is_over():
        group.read_messages()
        now = time.monotonic() - group.started
        running = now if running is None and group.values("running") else running
        ended = now if ended is None and group.values("ended") else ended
        time.sleep(0.001)
    statuses = group.end()
    group.reap()
    if statuses != [0] * scenario.processes or None in (running, ended):
        raise SystemExit(f"{scenario} fails without any interruption: {group.messages}")
    (final,) = group.values("weights")
    return final, running, ended


def warm_up(directory):
    """Trains once, for the imports on first use, which forked children then have."""
    scenario = Scenario(1, False, 0, "kill")
    for _ in range(2):
        saving = {"every_steps": 1, "on_signals": ()}
        train(scenario, directory / "warm", saving, lambda **message: None)
    shutil.rmtree(directory / "warm")


def campaign(kills, scenarios, seed_number, directory):
    """Runs all scenarios and prints a table; returns whether all passed."""
    finals, rows, all_passed = {}, [], True
    for index, scenario in enumerate(scenarios):
        remaining = kills // len(scenarios) + (index < kills % len(scenarios))
        key = (scenario.processes, scenario.workers)
        if remaining and key not in finals:
            finals[key] = uninterrupted_weights(scenario)
        counts, max_steps_lost, number, started = Counter(), 0, 0, time.monotonic()
        if remaining:
            seconds = measure_durations(scenario, directory / "calm", finals[key])
            shutil.rmtree(directory / "calm")
        while remaining > 0:
            random = Random(f"{seed_number}/{scenario}/{number}")
            folder = directory / f"{str(scenario).replace('/', '_')}_{number}"
            job = Job(scenario, folder, random, finals[key], seconds)
            try:
                remaining -= job.run(min(remaining, random.randint(1, MAX_INTERRUPTIONS)))
            except Problem as problem:
                all_passed = False
                counts["failures"] += 1
                print(f"FAILED: {scenario}, job {number}, seed {seed_number}: {problem}")
                print(f"  again: --seed {seed_number} --only {scenario}; kept: {folder}")
                remaining -= max(1, job.counts["interrupted"])
            else:
                shutil.rmtree(folder)
            counts += job.counts
            counts["jobs"] += 1
            max_steps_lost = max(max_steps_lost, job.max_steps_lost)
            number += 1
        rows.append((scenario, counts, max_steps_lost, time.monotonic() - started))
    show(rows, seed_number)
    return all_passed


def show(rows, seed_number):
    titles = (
        "scenario",
        "jobs",
        "starts",
        "interrupted",
        "clean exits",
        "steps lost",
        "failures",
        "s",
    )
    print(f"seed {seed_number}")
    print(f"{titles[0]:42}" + "".join(f"{each:>13}" for each in titles[1:]))
    total = Counter()
    for scenario, counts, max_steps_lost, seconds in rows:
        numbers = [counts[name] for name in ("jobs", "starts", "interrupted", "clean")]
        cells = [*numbers, f"<= {max_steps_lost}", counts["failures"], f"{seconds:.0f}"]
        print(f"{scenario!s:42}" + "".join(f"{each:>13}" for each in cells))
        total += counts
    print(
        f"{total['interrupted']} interruptions of {total['starts']} starts of {total['jobs']} jobs,"
        f" {total['failures']} failures"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", nargs="?", help="on the disk to try; default: a temporary one")
    parser.add_argument("--kills", type=int, default=300, help="interruptions in all")
    parser.add_argument("--seed", type=int, default=None, help="for the random times")
    parser.add_argument("--only", default="", help="scenarios that have these words in their names")
    options = parser.parse_args(arguments)
    scenarios = [
        scenario
        for scenario in SCENARIOS
        if all(word in str(scenario) for word in options.only.split())
    ]
    if not scenarios:
        parser.error(f"--only {options.only!r} is in none of {', '.join(map(str, SCENARIOS))}")
    seed_number = Random().randrange(10**6) if options.seed is None else options.seed
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "resumed from")  # the weights show if the resume was right
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    directory = Path(tempfile.mkdtemp(prefix="campaign-", dir=options.directory))
    warm_up(directory)
    all_passed = campaign(options.kills, scenarios, seed_number, directory)
    if all_passed:
        shutil.rmtree(directory)
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
