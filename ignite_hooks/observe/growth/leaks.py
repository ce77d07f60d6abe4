"""Finds the leaks of a run from the looks at its process."""

import warnings
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np
from ignite.engine import Engine
from numpy.typing import NDArray

from ignite_hooks.observe.growth.census import Census
from ignite_hooks.observe.growth.chains import find_chains
from ignite_hooks.observe.growth.chains import program_roots
from ignite_hooks.observe.growth.findings import Cause
from ignite_hooks.observe.growth.findings import End
from ignite_hooks.observe.growth.findings import make_finding
from ignite_hooks.observe.growth.findings import warning_of
from ignite_hooks.observe.growth.looks import Looks
from ignite_hooks.observe.growth.quantities import COUNTS
from ignite_hooks.observe.growth.quantities import ENTRIES
from ignite_hooks.observe.growth.quantities import LIMITS
from ignite_hooks.observe.growth.quantities import MEMORY
from ignite_hooks.observe.growth.quantities import OBJECTS
from ignite_hooks.observe.growth.quantities import TENSORS
from ignite_hooks.observe.growth.quantities import is_noise
from ignite_hooks.observe.growth.quantities import left_until_limit
from ignite_hooks.observe.growth.quantities import precedence
from ignite_hooks.observe.growth.quantities import shown_name
from ignite_hooks.observe.growth.samples import KnownObjects
from ignite_hooks.observe.growth.samples import samples_of
from ignite_hooks.observe.growth.trend import MAX_CHANCE
from ignite_hooks.observe.growth.trend import MAX_LOOKS
from ignite_hooks.observe.growth.trend import growth_rate

__all__ = ["Epoch", "Leaks"]

_WARM_UP = 2  # the first looks of a run, which are no evidence
_MIN_COLLECTIONS = 2  # full collections, after which what has grown is not garbage
_PROBE_LOOKS = 6  # looks that record also the dicts that the garbage collector does not track
_PROBE_CHANCE = 0.01

Growth = Mapping[str, float]
"""The growth per step of each quantity that grows."""


class Epoch(NamedTuple):
    """The present epoch.

    Attributes:
        number: the number of the epoch.
        is_endless: whether the epoch ends only with the run, because its data have no known length,
            and the run no number of epochs.
        iterations_left: the iterations until the epoch ends. If the length of the epoch is not
            known, this is the number of its completed iterations: a guess of the right size.
    """

    number: int
    is_endless: bool
    iterations_left: int


class Leaks:
    """The leaks of one run. A ``Leaks`` object keeps numbers and texts, and no object of users.

    Attributes:
        looks: the looks at the process.
        findings: a dict for each warning, as in ``GrowthWatch.result``.
        first_epoch: the number of the epoch of the first look; 0 before it.
    """

    def __init__(self) -> None:
        self.looks = Looks()
        self.findings: list[dict[str, Any]] = []
        self.first_epoch = 0
        self._lengths: dict[int, int] = {}  # of the long containers at the last look
        self._known = KnownObjects()
        self._named: set[str] = set()  # the quantities of which a warning was given
        self._findings_by_holder: dict[int, dict[str, Any]] = {}  # by the ``id`` of the holder
        # Quantities that are no leak, with the number of the look at which to examine them again.
        self._rejected: dict[str, int] = {}
        self._probe_since: int | None = None
        self._next_probe = 0  # the number of the look at which probing may begin

    @property
    def is_probing(self) -> bool:
        """True if the next look must record also the dicts that are not tracked."""
        return self._probe_since is not None

    def add(self, time: tuple[float, ...], values: Mapping[str, float], census: Census) -> None:
        """Adds a look."""
        looked = dict(values)
        looked |= {f"{OBJECTS}{name}": count for name, count in census.by_type.items()}
        looked |= {f"{TENSORS}{name}": count for name, count in census.by_tensor.items()}
        before: dict[str, float] = {}
        for each, length in census.lengths.items():
            # Only containers that grow are recorded, because there may be many of constant length.
            last, name = self._lengths.get(each, length), f"{ENTRIES}{each}"
            if length > last or (length == last and name in self.looks):
                looked[name], before[name] = length, last
        self.looks.add(time, looked, before)
        self._lengths = census.lengths
        self._rejected = {k: v for k, v in self._rejected.items() if k in self.looks}
        self.first_epoch = self.first_epoch or int(self.looks.times["epoch"][0])

    def search(self, engine: Engine, epoch: Epoch) -> None:
        """Warns of each cause of growth, once."""
        evidence = self._evidence(epoch)
        growing = dict(self._growing(evidence))
        has_blocks = growing.pop("blocks", None) is not None
        new = {
            name: rate
            for name, rate in growing.items()
            if name not in self._named
            and self._rejected.get(name, 0) <= self._number
            # Memory is no cause. But that of workers has no other quantity that leads to a cause.
            and (name not in MEMORY or name == "worker_ram_bytes")
        }
        for cause in self._causes(engine, new, growing, evidence) if new else []:
            self._report(cause, growing, evidence)
        self._search_untracked(growing, has_blocks, evidence)
        self._record_objects(evidence)

    def _record_objects(self, evidence: NDArray[np.int64]) -> None:
        """Records the objects at the first look that is evidence, and at every twentieth look.

        The warm-up ends before the first epoch does, so its end is recorded, too.
        """
        is_first = len(evidence) == 1 and evidence[0] == len(self.looks.times) - 1
        if is_first or self._number == _WARM_UP:
            self._known.record(from_scratch=True)
        elif self._number % (MAX_LOOKS // 2) == 0:
            self._known.record(from_scratch=False)

    @property
    def _number(self) -> int:
        """The number of the last look."""
        return int(self.looks.times["number"][-1])

    def _search_untracked(
        self, growing: Growth, has_blocks: bool, evidence: NDArray[np.int64]
    ) -> None:
        """Probes for some looks while memory grows and no cause is known.

        To probe is to record also the dicts that the garbage collector does not track. If none of
        them grows, a growth of memory is reported without a cause.
        """
        memory = [name for name in ("ram_bytes", "device_bytes") if name in growing]
        if self._named or not (memory or has_blocks):
            self._probe_since = None
        elif self._probe_since is None:
            if self._number >= self._next_probe:
                self._probe_since = self._number
        elif self._number - self._probe_since >= _PROBE_LOOKS:
            self._probe_since, self._next_probe = None, 2 * self._number
            for name in memory if not self._rejected.keys() & growing else []:
                self._report(Cause([name], None), growing, evidence)

    def _evidence(self, epoch: Epoch) -> NDArray[np.int64]:
        """Returns the indices of the looks that show whether a quantity grows.

        The first epoch is left out, because caches fill in it. The present epoch is left out except
        for its start, because what an epoch collects is given back at its end. All looks after the
        warm-up count if there are no epochs, or if a limit is reached within the present epoch.
        """
        times = self.looks.times
        is_warm = times["number"] >= _WARM_UP
        after_warm_up = np.flatnonzero(is_warm)
        has_no_epochs = epoch.is_endless and epoch.number == self.first_epoch
        if has_no_epochs or self._ends_in_epoch(epoch, after_warm_up):
            return after_warm_up
        is_whole = (times["epoch"] < epoch.number) | times["is_epoch_start"]
        return np.flatnonzero(is_warm & (times["epoch"] > self.first_epoch) & is_whole)

    def _ends_in_epoch(self, epoch: Epoch, looks: NDArray[np.int64]) -> bool:
        """Returns whether a quantity reaches its limit before the epoch ends."""
        last = self.looks.times[-1]
        steps = epoch.iterations_left * last["step"] / max(1, last["iteration"])
        for name in LIMITS:
            rate = self._rate(name, looks) if name in self.looks else None
            left = None if rate is None else left_until_limit(name)
            if rate is not None and left is not None and left / rate < steps:
                return True
        return False

    def _rate(
        self, name: str, looks: NDArray[np.int64], chance: float = MAX_CHANCE
    ) -> float | None:
        """Returns the growth per step of a quantity, or None."""
        values = self.looks.of(name)[looks]
        is_known = ~np.isnan(values)
        steps = self.looks.times["step"][looks].astype(float)
        return growth_rate(steps[is_known], values[is_known], chance)

    def _growing(self, evidence: NDArray[np.int64]) -> Iterator[tuple[str, float]]:
        """Yields (name, growth per step) of each quantity that grows."""
        if not len(evidence):
            return
        first, last = self.looks.times["step"][evidence[[0, -1]]].tolist()
        for name, values in self.looks.risen():
            is_probed = self.is_probing and name.startswith(ENTRIES)
            rate = self._rate(name, evidence, _PROBE_CHANCE if is_probed else MAX_CHANCE)
            if rate is not None and not is_noise(name, rate * (last - first), values[-1]):
                yield name, rate

    def _causes(
        self, engine: Engine, new: Growth, growing: Growth, evidence: NDArray[np.int64]
    ) -> list[Cause]:
        """Returns the causes of growth: quantities that grow together, with a chain.

        Objects without a chain are garbage that waits for a collection, or objects that extension
        modules hold. They are a cause only if memory grows too, and collections keep them. Samples
        without a common holder, such as lists of several parts of the program, are a cause only if
        memory grows too.

        Args:
            engine: the engine.
            new: the quantities that grow and were not named yet.
            growing: all quantities that grow.
            evidence: the indices of the looks that are evidence.
        """
        has_memory = not growing.keys().isdisjoint(MEMORY)
        with samples_of(new, growing, self._known, with_untracked_dicts=self.is_probing) as samples:
            chains = find_chains(samples, program_roots(engine))
        first, last = self.looks.times["collections"][evidence[[0, -1]]].tolist()
        is_collected = last - first >= _MIN_COLLECTIONS
        causes: dict[Any, Cause] = {}
        for name in new:
            chain = chains.get(name)
            if chain is None:
                is_harmless = name not in COUNTS and not (is_collected and has_memory)
            else:
                is_vague = chain.holder is None and name.startswith((OBJECTS, TENSORS))
                is_harmless = chain.is_bounded or chain.is_own or (is_vague and not has_memory)
            if is_harmless:
                self._rejected[name] = 2 * self._number
            else:
                key = name if chain is None else chain.holder_id or chain.path
                causes.setdefault(key, Cause([], chain)).names.append(name)
        return self._merged(list(causes.values()))

    def _merged(self, causes: list[Cause]) -> list[Cause]:
        """Returns the causes to warn of, the most telling first.

        One cause makes many quantities grow, also in libraries. So quantities without a holder in
        the program are counted to the first cause, or to the last finding.
        """
        for cause in causes:
            cause.names.sort(key=precedence)
        # A thread, a process or a file tells more than the objects that it consists of.
        causes.sort(
            key=lambda cause: (
                COUNTS.keys().isdisjoint(cause.names),
                not cause.is_clear,
                precedence(cause.names[0]),
            )
        )
        merged: list[Cause] = []
        for cause in causes:
            if cause.is_clear or not merged:
                merged.append(cause)
            else:
                merged[0].names.extend(cause.names)
        if self.findings and merged and not merged[0].is_clear:
            unclear = merged.pop(0)
            self._named.update(unclear.names)
            kept = [name for name in unclear.names if name in COUNTS or name in MEMORY]
            if kept:
                merged.append(Cause(kept, unclear.chain))
        return merged

    def _report(self, cause: Cause, growing: Growth, evidence: NDArray[np.int64]) -> None:
        """Warns of a cause, unless a warning has named its holder before."""
        self._named.update(cause.names)
        holder = None if cause.chain is None else cause.chain.holder_id
        rates = {shown_name(name, cause.chain): 1000 * growing[name] for name in cause.names}
        if holder is not None and holder in self._findings_by_holder:
            self._findings_by_holder[holder]["classes"].update(rates)
            return
        finding = make_finding(
            rates,
            cause.chain,
            step=int(self.looks.times["step"][-1]),
            since_step=int(self.looks.times["step"][evidence[0]]),
            ram_rate=1000 * growing["ram_bytes"] if "ram_bytes" in growing else None,
            end=self._first_end(cause.names, growing, evidence),
        )
        self.findings.append(finding)
        if holder is not None:
            self._findings_by_holder[holder] = finding
        warnings.warn(warning_of(finding), stacklevel=2)

    def _first_end(
        self, names: list[str], growing: Growth, evidence: NDArray[np.int64]
    ) -> End | None:
        """Returns the limit that is reached first, and when; None if no limit is known."""
        first, last = self.looks.times[evidence[[0, -1]]]
        steps_per_second = (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])
        ends = []
        for name in {*names, *MEMORY} & LIMITS.keys() & growing.keys():
            left = left_until_limit(name)
            if left is not None:
                ends.append(End(left / growing[name] / float(steps_per_second), LIMITS[name]))
        return min(ends, default=None)
