"""Watches what grows over a run: names the class that leaks, its rate, and its holder."""

from typing import Any
from typing import ClassVar

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import Prefix
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.metric_writer import MetricWriter
from ignite_hooks.observe.growth.run_watch import METRICS
from ignite_hooks.observe.growth.run_watch import RunWatch

__all__ = ["GrowthWatch"]


@checked_dataclass
class GrowthWatch(MetricWriter):
    """Warns of what grows without end over a run: memory, objects, files, threads, processes.

    ::

        watch = GrowthWatch()
        with watch.attach(trainer):
            trainer.run(data, max_epochs=30)
        print(watch.result(trainer)["growing"])

    A leak ends a run when memory is exhausted, often after hours, and the error names a line of
    code that has nothing to do with the leak. GrowthWatch looks at the process every
    ``every_steps`` steps, and warns once of each cause of growth. The warning names what grows, the
    rate, the time until a limit is reached, and a chain of references from a variable of the
    program to one of the new objects.

    A look counts the memory of the process, of its child processes and of the device; the objects
    that Python's garbage collector tracks, by type; tensors by shape, dtype and device; the entries
    of long lists, dicts, sets and deques; open files, threads and child processes. A look reads no
    values of tensors, so it does not synchronize with the device. The handler keeps numbers and
    texts, and no counted object. It makes no garbage collection.

    There is no warning of:

    - What grows in the first two looks or in the first epoch, such as caches that fill.
    - What an epoch collects and drops at its end, such as the predictions of a metric. So a growth
      counts only when its epoch has ended. But if a limit would be reached before the epoch ends,
      or if the data have no length and the run has no number of epochs, all looks count.
    - Peaks, and garbage that waits for a collection: no chain of references leads to garbage.
    - Entries of a ``functools.lru_cache`` or a deque with a limit, and what the objects of this
      package hold.

    The test of growth needs ten looks after the first two. The growth of untracked values (numbers,
    texts, and dicts of them) takes five looks more.

    Values are written to ``state.metrics``: ``growth/ram_mib`` (resident memory without files and
    shared memory), ``growth/peak_ram_mib`` (the exact peak since the last look, as of ``MaxRAM``),
    ``growth/worker_ram_mib`` (what child processes do not share), ``growth/device_mib`` (memory of
    tensors on the device, if there is one), ``growth/objects``, ``growth/tensors``,
    ``growth/open_files``, ``growth/threads``, ``growth/worker_processes``, and ``growth/growing``,
    the number of warnings so far.

    If epochs are shorter than ``every_steps``, the looks come at the starts of epochs. With several
    processes, each process watches itself, and its warnings name its rank; nothing is exchanged. A
    run that continues in the same process adds to its looks. A new run, and a run that resumes from
    a checkpoint in a new process, start from scratch.

    Args:
        every_steps: the number of committed steps from one look to the next. On an engine that has
            no ``OptimizerStep``, iterations are counted instead.
        prefix: is put before each name in ``state.metrics``.

    Raises:
        ValueError: an argument is out of its range. When attached: an event is given, or another
            handler of the engine writes the same metrics.
    """

    no_event: ClassVar[str] = "looks every `every_steps` steps"

    every_steps: Every = 500
    prefix: Prefix = "growth/"

    def names(self) -> list[str]:
        """Returns the keys that the handler writes in ``state.metrics``."""
        return [f"{self.prefix}{name}" for name in METRICS]

    def result(self, engine: Engine) -> dict[str, Any]:
        """Returns what the handler has found in the present or last run, as plain data.

        "looks" is the number of looks, "look_seconds" the duration of the longest one, and
        "growing" is a list with one dict for each warning:

        - "class": what grows, for example "objects of type torch.Tensor".
        - "classes": maps all that grows by the same cause to its growth per 1,000 steps. Memory is
          in bytes.
        - "step", "since_step": the step of the warning, and the first step of the growth.
        - "chain": the references from a variable to one of the objects, as text, or None.
        - "holder", "holder_is": the object that holds all of them, or None, and what it is.
        - "ram_bytes_per_1000_steps": the growth of resident memory; None if it does not grow.
        - "seconds_left", "limit": the time until a limit is reached, and what there is a limit of:
          "memory", "device memory" or "open files"; None if no limit is known.

        Raises:
            ValueError: the handler was never attached to ``engine``.
        """
        watch = _watches(engine).get(self)
        if watch is None:
            raise ValueError(
                "`engine` must be one that the GrowthWatch has watched, and the GrowthWatch was "
                "never attached to it: call attach(engine) before the run"
            )
        return watch.result()

    def findings(self, engine: Engine) -> dict[str, Any]:
        """Returns the list "growing" of ``result``; an empty dict if nothing was found."""
        watch = _watches(engine).get(self)
        growing = [] if watch is None else watch.result()["growing"]
        return {"growing": growing} if growing else {}

    def attach_to(self, attachment: Attachment) -> None:
        """Looks at the process every ``every_steps`` steps, and at the starts of epochs."""
        watch = RunWatch(self.every_steps, self.prefix)
        _watches(attachment.engine)[self] = watch
        attachment.during_run(watch.during_run)
        attachment.on(Events.STARTED, watch.begin_run)
        attachment.on_steps(self.every_steps, watch.look_by_step)


def _watches(engine: Engine) -> dict[GrowthWatch, RunWatch]:
    """Returns the watches of all handlers that were ever attached to ``engine``."""
    watches: dict[GrowthWatch, RunWatch] = engine_storage(engine).setdefault("growth_watches", {})
    return watches
