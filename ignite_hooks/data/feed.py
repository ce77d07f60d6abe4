"""Feeds: data as an engine must see it, pass by pass, with a position that can be resumed."""

import warnings
from collections.abc import Generator
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import ExitStack
from contextlib import closing
from typing import Any
from weakref import WeakKeyDictionary
from weakref import ref

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

from ignite_hooks.core.accelerators import list_loader
from ignite_hooks.core.accelerators import unlist_loader
from ignite_hooks.core.object_graph import Unsearched
from ignite_hooks.core.place import FeedPosition
from ignite_hooks.core.rules import shown_type
from ignite_hooks.data.changed_data import ChangedData
from ignite_hooks.data.pass_end import PassEnd
from ignite_hooks.data.prepare import can_prepare
from ignite_hooks.data.prepare import device_of_batches
from ignite_hooks.data.prepare import source_of
from ignite_hooks.data.random_state import FoundGenerators
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.shared_order import digest_of_global_generators
from ignite_hooks.data.shared_order import what_may_draw_apart

__all__ = ["DataFeed", "Feeds", "load_between_passes"]


class DataFeed:
    """Gives an engine the batches of a loader, pass by pass, and knows the place it is at.

    Ignite never exhausts an iterator, and Accelerate relies on that it is exhausted: without this
    class the loader's epoch stands still, a finished loader stays the active one (which switches
    gradient accumulation off while another is iterated), and a resumed run begins at batch 0.

    ``iter(feed)`` begins where the position says. Leaving a pass half-way (a stop, a failure)
    keeps the position; calling ``iter`` while a pass is being given abandons that pass for the
    next. Where the number of batches is certain the feed does not look ahead, so that random
    numbers are drawn in the order of a plain PyTorch loop; else it looks one batch ahead, because
    the last batch of a pass has to be known as the last.

    With several processes they agree, at the start of each pass, on the smallest of their numbers
    of batches. Where one of them does not know its number, they agree once for every
    ``gradient_accumulation_steps`` batches.

    Attributes:
        holds_iterator: whether an iterator is ended by ``close`` alone, and not when its user drops
            it: Python swallows Ctrl-C while it deletes an object.
        promised_length: the number of batches that ``len(data)`` promises for the pass that was
            looked at last, to be shown; None without a promise. Nothing relies on it.

    Args:
        data: a ``DataLoader``, prepared with Accelerate or not, or any iterable of batches.
        accelerator: prepares a loader that is not prepared yet, and says where the batches go.
            Without one ``data`` is used as it is.
        even_batches: whether every process must see the same number of batches, as training does.
            If not, no sample is given twice to make batches even, which is what metrics need.

    Raises:
        TypeError: ``data`` is not iterable.
        ValueError: ``data`` is empty, or cannot be distributed over several processes.
        RuntimeError: a pass gave more or fewer batches than ``len(data)`` promised.
    """

    def __init__(
        self, data: Any, accelerator: Accelerator | None = None, *, even_batches: bool = True
    ) -> None:
        if not isinstance(data, Iterable) or isinstance(data, str):
            raise TypeError(
                f"`data` must be an iterable of batches, got {shown_type(data)}: "
                f"pass {_remedy_for(data)}"
            )
        self._accelerator = accelerator
        self._source = source_of(data, accelerator, even_batches)
        self._is_listed = can_prepare(data)
        self.use_for(self)
        several = accelerator is not None and accelerator.num_processes > 1
        agrees = several and even_batches and not self._source.ends_itself
        self._may_be_empty = several and not even_batches  # other processes have batches then
        self._device = device_of_batches(self._source.loader, accelerator)
        # Which pass this is, and how many of its batches have been given.
        self.position = FeedPosition(getattr(self.loader, "iteration", 0), 0)
        # Weak, so that an engine that drops its iterator ends it.
        self._giving: ref[Generator[Any, None, None]] | None = None
        self._held: Generator[Any, None, None] | None = None
        self.holds_iterator = False
        self._end = PassEnd(self._source, accelerator if agrees else None)
        if accelerator is not None:
            self._source.set_window(accelerator.gradient_accumulation_steps)
        self.is_last = False
        self.promised_length: int | None = None
        if self._end.length == 0 and not self._may_be_empty:
            raise ValueError(self._no_batches())

    @property
    def loader(self) -> Any:
        """The prepared loader, or the iterable of batches."""
        return self._source.loader

    def use_for(self, user: object) -> None:
        """Has Accelerate know the loader, as what it prepared, as long as ``user`` is there."""
        if self._accelerator is not None and self._is_listed:
            list_loader(user, self._accelerator, self.loader)

    def leave(self, user: object) -> None:
        """Takes back what ``use_for`` has done for ``user``. The loader works as before."""
        if self._accelerator is not None:
            unlist_loader(user, self._accelerator, self.loader)

    @property
    def can_repeat(self) -> bool:
        """Whether batches that were given can be given again; an iterator's cannot."""
        return self._source.can_repeat

    @property
    def reaches_all_ranks(self) -> bool:
        """Whether each rank is sure to have a batch of a pass: the same answer on all of them."""
        return self._source.reaches_all_ranks

    @property
    def batches_left(self) -> int | None:
        """How many batches this pass has from the present one on; None where it is not known."""
        if self.is_last:
            return 1
        return None if self._end.length is None else self._end.length - self.position.batches + 1

    @property
    def generators(self) -> dict[str, RandomGenerator]:
        """The random generators that the loader and the data have for themselves, by name."""
        return self._source.generators

    @property
    def found_generators(self) -> FoundGenerators:
        """The same, and why there may be others."""
        return self._source.found_generators

    @property
    def roots(self) -> dict[str, Any]:
        """The objects that batches come from, by name."""
        return self._source.roots

    @property
    def length(self) -> int | None:
        """The number of batches in a pass; None where it is not certain."""
        return self._end.length

    @property
    def facts(self) -> dict[str, int | str | None]:
        """What must be the same for another process to be given the same batches."""
        return self._source.facts()

    def __len__(self) -> int:
        """The number of batches in a pass; a TypeError where it is not certain."""
        if not self._end.length:
            raise TypeError(f"{type(self.loader).__name__} has no certain number of batches")
        return self._end.length

    def __iter__(self) -> Iterator[Any]:
        if self._now_giving() is not None:
            self.next_pass()
        elif self.is_last:  # its end broke off
            self._source.end_pass(*self.position)
            self._leave_pass()
        giving = self._give()
        self._giving = ref(giving)
        self._held = giving if self.holds_iterator else None
        return giving

    def _now_giving(self) -> Generator[Any, None, None] | None:
        return None if self._giving is None else self._giving()

    @property
    def at_start(self) -> bool:
        """Whether no batch of this pass has been given."""
        return not self.position.batches

    def look(self) -> None:
        """Looks how many batches this pass has; of one that has begun, what is promised.

        That may differ from pass to pass: a data set grows, a sampler draws. No random number is
        taken by it: a ``set_epoch`` that draws is called again when the pass begins. The other
        processes are asked only then; until then a length that has changed here is shown.
        """
        with RandomState.preserved(generators=self.generators):
            if self.at_start:
                self._source.tell_pass(self.position.data_pass)
                self._end.look()
            self.promised_length = self._source.promised_length

    def seek(self, position: FeedPosition) -> None:
        """Goes to ``position``; the next ``iter`` begins there. An iterator stays where it is.

        A pass that was begun before keeps the order of its samples, unless its sampler draws from
        a global generator while it goes. Where the loader has a sampler of its own process, the
        batches up to ``position`` are not loaded.
        """
        if self.can_repeat:
            self._end.ahead.clear()
            self._source.furthest = self.position
            self.is_last, self.position = False, FeedPosition(*position)  # one line: both or none
        self.close()

    def go_back_to(self, position: FeedPosition) -> None:
        """Has what came after ``position`` given again; an iterator can't, which is a warning."""
        lost = self.position.batches - position.batches
        if position == self.position:
            self.close()
        elif self.can_repeat:
            self.seek(position)
        elif lost > 0:
            warnings.warn(
                f"the last {lost} batches were not trained on, and an iterator cannot give them "
                "again: what comes next is what follows them (a list or a DataLoader could)",
                stacklevel=2,
            )

    def next_pass(self) -> None:
        """Leaves the rest of this pass, if one was begun."""
        self.close()
        if self.position.batches:
            self._leave_pass()

    def finish(self) -> None:
        """After the last batch of a pass: ends it, so that Accelerate and the workers know."""
        giving = self._now_giving()
        if self.is_last and giving is not None:
            next(giving, None)

    def close(self) -> None:
        """Ends the iteration: workers go, and the loader is no longer Accelerate's active one."""
        giving = self._now_giving()
        if self.can_repeat:
            self._end.ahead.clear()
        if giving is not None:
            giving.close()
        self._giving = self._held = None  # last: a call that broke off may be repeated

    def deactivate(self) -> None:
        """Takes the loader off Accelerate's references, where it was put back after ``close``."""
        if hasattr(self.loader, "end"):
            self.loader.end()

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, and what it takes to go on there in another process.

        Numbers, lists and tensors, which ``torch.load`` takes without pickle. The global random
        generators are not in it: they belong to whoever draws from them next.
        """
        position = FeedPosition(self.position.data_pass + 1, 0) if self.is_last else self.position
        return {
            "position": list(position),
            "samples": self._source.samples_before(position),
            "workers": self._source.workers_before(position),
            "order": self._source.order_before(position),
            "source": self._source.state_dict(),
            "facts": self._source.facts(),
            "place": self._source.place_before(position),
            "draws_in_workers": self._source.draws_in_workers,
        }

    def doubts(self) -> list[str]:
        """Returns why the data may have a state that ``state_dict`` does not have."""
        return [*self._source.doubts(), *self._source.places.doubts(self._source)]

    def starts_over(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether that position is void in these data, so that their next pass starts."""
        return self.can_repeat and self._changed(state_dict).starts_over

    def ends_pass(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether these data have no batch for what is left of that pass."""
        return self.can_repeat and self._changed(state_dict).ends_pass

    def changes(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns each change from the saved feed, with its consequence."""
        return self._changed(state_dict).reasons() if self.can_repeat else []

    def remarks(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns what has to be iterated again to resume there, which may take long."""
        batches = state_dict["position"][1]
        found = self._source.gone_through
        is_placed = self._is_placed(state_dict)
        if not batches or found is None or is_placed or self.starts_over(state_dict):
            return []
        what = f"the {state_dict['samples']} samples" if state_dict.get("samples") else "all"
        return [f"a {type(found).__name__} is iterated again over {what} before this position"]

    def _is_placed(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether a state of the data tells the place."""
        is_taken = self._source.takes_order(state_dict.get("order"))
        return is_taken or self._source.places.takes(self._source, state_dict.get("place"))

    def _keeps_place(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether the data resume from their own state, whatever else has changed."""
        is_taken = self._source.takes_order(state_dict.get("order"))
        return is_taken or self._source.keeps_place(state_dict)

    def _changed(self, state_dict: Mapping[str, Any]) -> ChangedData:
        samples, accelerator = state_dict.get("samples"), self._accelerator
        return ChangedData(
            then=state_dict["facts"],
            now=self.facts,
            batches=state_dict["position"][1],
            samples=samples,
            batches_left=None if samples is None else self._source.batches_behind(samples),
            window=accelerator.gradient_accumulation_steps if accelerator else 1,
            has_state=self._keeps_place(state_dict),
            is_given_up=not state_dict.get("replay", True) and self._source.is_replayed,
        )

    def differences(self, state_dict: Mapping[str, Any]) -> list[str]:
        """What keeps the batches from being those that the other feed gives next, if anything."""
        if not self._source.can_repeat:
            return ["an iterator cannot be moved: it goes on from where it is"]
        if not self._source.is_reader:
            return []  # the rank that loads the batches says what differs
        found = []
        places, place = self._source.places, state_dict.get("place")
        order = state_dict.get("order")
        generators = state_dict["source"]["generators"].keys()
        for name in sorted(generators ^ self._source.generators.keys()):
            is_told = places.restores(self._source, place, name)
            if not is_told and not self._source.has_saved(name, order):
                when = "then" if name in generators else "now"
                found.append(f"there is a random generator {name} only {when}")
        changed = self._changed(state_dict)
        is_within = state_dict["position"][1] and not (changed.starts_over or changed.ends_pass)
        has_workers = state_dict["source"].get("has_workers")
        found += self._source.place_differences(FeedPosition(*state_dict["position"]), place)
        found += self._source.changes_of_order(order)
        is_placed = self._source.is_entered_exactly or self._is_placed(state_dict)
        if is_within and not is_placed:
            found.append(
                "batches that were given are gone through again: what they draw at random is drawn "
                f"anew until this pass ends; without such draws it is exact{self._source.remedy}"
            )
        is_drawn = self._source.draws_in_workers and state_dict.get("draws_in_workers", False)
        if self._workers_of(state_dict) is not None or (
            is_drawn and places.takes(self._source, place)
        ):
            pass  # the workers continue from their states
        elif is_within and not self._source.is_in_order:
            found.append(
                "workers give batches in any order (in_order=False), and which of them came first "
                "is not saved: samples can come twice in this pass or not at all"
            )
        elif has_workers:
            found.append(
                "what the data set draws at random in workers that stay is drawn anew; without "
                "such draws it is exact"
            )
        elif self.facts["workers"] and is_within and not changed.has_other_workers:
            found.append(
                "what the data set draws at random in its workers is drawn anew until this pass "
                "ends; without such draws it is exact"
            )
        return found

    def _workers_of(self, state_dict: Mapping[str, Any]) -> Any:
        """Returns the states from which the workers continue; None if they start from scratch."""
        states, changed = state_dict.get("workers"), self._changed(state_dict)
        is_same = not changed.reasons() and not changed.starts_over
        return states if is_same and self._source.takes_workers(states) else None

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes to that place: the next ``iter`` gives the batches that the other feed gives next.

        Earlier batches are not loaded if the loader has a sampler. With torch's ``BatchSampler``
        the batch size may have changed. If the position is void in these data, or could only be
        reached by a replay and ``state_dict["replay"]`` is False, the feed moves to the next pass.
        An iterator stays where it is.
        """
        self._source.load_state_dict(state_dict["source"])
        position, place = FeedPosition(*state_dict["position"]), state_dict.get("place")
        changed, order = self._changed(state_dict), state_dict.get("order")
        self._source.place_order(
            position, None if changed.starts_over else order, ends=changed.ends_pass
        )
        if changed.starts_over or changed.ends_pass:
            position, place = FeedPosition(position.data_pass + 1, 0), None
        elif changed.samples is not None and (
            changed.keeps_samples or self._source.takes_order(order)
        ):
            self._source.place_samples(position, changed.samples)
        self._source.place_workers(position, self._workers_of(state_dict))
        self._source.resume_place(position, place)
        self.seek(position)
        with RandomState.preserved(generators=self.generators):
            self._source.tell_pass(self.position.data_pass)
            self._end.settle()

    def shares_place_with(self, other: "DataFeed") -> bool:
        """Returns whether one object tells the places of both feeds."""
        mine, others = self._source.keeper, other._source.keeper
        return mine is not None and others is not None and mine.holder is others.holder

    def restore_once(self, others: Iterable["DataFeed"]) -> None:
        """Has one object that tells several places restored by the first feed that is iterated."""
        self._source.places.restore_once(each._source.places for each in others)

    def _give(self) -> Generator[Any, None, None]:
        """One pass, or what is left of it. It begins with the first ``next``."""
        if not self.at_start and self.position.batches == self._end.length:
            self._source.end_pass(*self.position)
            self._leave_pass()
        if self.can_repeat:
            self._end.ahead.clear()
        length_before = self._end.length
        ahead, to_device, moves = self._end.ahead, self._to_device, self._device is not None
        self._source.places.arrive(self._source)
        with ExitStack() as stack:
            stack.enter_context(self._source.active(self.position.data_pass))
            self._end.settle(digest_of_global_generators() if self._is_drawn_by_all else 0)
            if not self.at_start and self._end.length != length_before:
                self._warn_of_change(length_before)
            batches = stack.enter_context(closing(self._source.batches(*self.position)))
            for is_last in self._end.fetch(batches, *self.position):
                data_pass, given = self.position
                self.position = FeedPosition(data_pass, given + 1)
                self.is_last = is_last
                if is_last:
                    self._source.mark_last()
                # Not kept under a name: a suspended generator would hold it through validation.
                yield to_device(ahead.popleft()) if moves else ahead.popleft()
        if not self.position.batches and not self._may_be_empty:
            raise ValueError(self._no_batches())
        self._giving = None
        self._leave_pass()

    @property
    def _is_drawn_by_all(self) -> bool:
        """Whether the order of this pass is about to be drawn, and may be another on each rank."""
        accelerator = self._accelerator
        if accelerator is None or accelerator.num_processes == 1 or not self.at_start:
            return False
        # Who gives each rank batches of its own has divided them, too.
        return isinstance(self.loader, DataLoader) and what_may_draw_apart(self.loader) is not None

    def _leave_pass(self) -> None:
        position = FeedPosition(self.position.data_pass + 1, 0)
        self.is_last, self.position = False, position
        if hasattr(self.loader, "iteration"):
            self.loader.iteration = self.position.data_pass

    def _to_device(self, batch: Any) -> Any:
        non_blocking = self._accelerator is not None and self._accelerator.non_blocking
        return send_to_device(batch, self._device, non_blocking=non_blocking)

    def _warn_of_change(self, length_before: int | None) -> None:
        warnings.warn(
            f"the data has {self._end.length} batches a pass now, and had {length_before} when the "
            f"pass was begun that goes on after {self.position.batches}: samples can come twice in "
            "it or not at all; change data between two passes",
            stacklevel=2,
        )

    def _no_batches(self) -> str:
        again = "" if self.can_repeat else "; an iterator is used up after one pass"
        return (
            f"`data` gave no batch in pass {self.position.data_pass + 1}, it must give at least "
            f"one: check the {_kind_of(self.loader)} and its data set{again}"
        )


def _remedy_for(data: Any) -> str:
    if isinstance(data, Dataset):
        return "DataLoader(dataset, batch_size=32), or another size"
    return "a DataLoader, a list of batches or a generator"


class Feeds:
    """The feeds of an engine: no loader is prepared twice, and each goes on where it was left.

    A loader keeps its own feed, for as long as anyone has the loader; the engine keeps the newest.
    Of loaders that Accelerate prepared for the engine, that one is on Accelerate's list.

    Args:
        accelerator: prepares the loaders.
        even_batches: as in ``DataFeed``.
    """

    def __init__(self, accelerator: Accelerator, even_batches: bool = True) -> None:
        self._accelerator = accelerator
        self._even_batches = even_batches
        self._newest: tuple[Any, DataFeed | None] = (None, None)
        self._kept: list[tuple[Any, DataFeed]] = []

    @property
    def newest(self) -> DataFeed | None:
        """The feed that was added last; None without any."""
        return self._newest[1]

    def of(self, data: Any, *, keeps: bool = False) -> DataFeed:
        """Returns the feed of ``data``, which is made if it is not known.

        Args:
            data: the data.
            keeps: whether the feed of data that is no DataLoader is remembered too, as long as this
                object is there. Without it only the newest is.
        """
        if isinstance(data, DataFeed):
            return data
        feed = self.known(data)
        if feed is None:
            feed = DataFeed(data, self._accelerator, even_batches=self._even_batches)
        if keeps and not isinstance(data, DataLoader) and all(data is not e for e, _ in self._kept):
            self._kept.append((data, feed))
        if feed is not self._newest[1]:
            self.add(data, feed)
        return feed

    def known(self, data: Any) -> DataFeed | None:
        """Returns the feed of ``data``; None if it was not made or is not remembered."""
        if isinstance(data, DataLoader):
            return _feeds_of(data).get(self)
        found = (feed for each, feed in (self._newest, *self._kept) if each is data)
        return next(found, None)

    def add(self, data: Any, feed: DataFeed) -> None:
        """Says that ``feed`` is the one of ``data``."""
        _, former = self._newest
        self._newest = data, feed
        for loader in (data, feed.loader):
            if isinstance(loader, DataLoader):
                _feeds_of(loader)[self] = feed
        feed.use_for(self)
        feed.leave(feed)  # which its loader now keeps
        if former is not None and former is not feed:
            former.leave(self)


def load_between_passes(
    states: Iterable[tuple[DataFeed, Mapping[str, Any]]], others: Iterable[DataFeed] = ()
) -> None:
    """Moves feeds to places that were saved at one moment, each where a pass begins.

    Feeds may be of the same data, and what one of them restores later, as it is iterated, would
    undo what another has done by then. So all is restored now but for an object that tells the
    place, which is restored once.

    Args:
        states: the feeds, each with its state.
        others: feeds that are at their places of that moment already.
    """
    loaded = []
    for feed, state in states:
        place, order = state.get("place"), state.get("order")
        if place is not None:  # of these the feed has the states of the same moment
            place = {**place, "objects": {}, "generators": {}}
            # Iterated again, a sampler that was left early begins anew; its state would continue.
            if place["is_cut"] and "sampler" in place["of"].partition(" ")[0]:
                place = None
        if order is not None and not (order["is_within"] or order["is_over"]):
            order = None
        feed.load_state_dict({**state, "place": place, "order": order})
        loaded.append(feed)
    known = {id(feed): feed for feed in (*loaded, *others)}.values()
    for feed in known:
        feed.restore_once(
            each for each in known if each is not feed and each.shares_place_with(feed)
        )


class _FeedsOfLoader(Unsearched):
    """The feeds of one loader, by their engines' ``Feeds``: an attribute of the loader.

    A feed refers to its loader. In a table of ours neither would ever be freed; like this they are
    a circle, which a garbage collection frees. A copy of the loader has none of them.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = ref(loader)
        self.feeds: WeakKeyDictionary[Feeds, DataFeed] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def _feeds_of(loader: Any) -> "WeakKeyDictionary[Feeds, DataFeed]":
    known = vars(loader).get("_ignite_hooks_feeds")
    if known is None or known.loader() is not loader:
        known = loader._ignite_hooks_feeds = _FeedsOfLoader(loader)
    return known.feeds  # type: ignore[no-any-return]


def _kind_of(loader: Any) -> str:
    """What its user calls it."""
    return "DataLoader" if isinstance(loader, DataLoader) else type(loader).__name__
