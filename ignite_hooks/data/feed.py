"""Feeds: iterate a loader pass by pass, and know the position, so that it can be resumed."""

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

from ignite_hooks.core.accelerators import add_loader_owner
from ignite_hooks.core.accelerators import remove_loader_owner
from ignite_hooks.core.object_graph import ExcludedFromSearch
from ignite_hooks.core.place import FeedPosition
from ignite_hooks.core.rules import shown_type
from ignite_hooks.data.changed_data import ChangedData
from ignite_hooks.data.pass_end import PassEnd
from ignite_hooks.data.prepare import can_prepare
from ignite_hooks.data.prepare import device_of_batches
from ignite_hooks.data.prepare import prepare_source
from ignite_hooks.data.random_state import FoundGenerators
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.shared_order import global_generators_digest
from ignite_hooks.data.shared_order import rank_dependent_part

__all__ = ["DataFeed", "Feeds", "load_between_passes"]


class DataFeed:
    """Iterates a loader for an engine, pass by pass, and keeps its position in the data.

    Ignite does not exhaust an iterator, but Accelerate relies on the exhaustion. Without this class
    the epoch of the loader is not advanced, a finished loader remains Accelerate's active one
    (which switches gradient accumulation off while another loader is iterated), and a resumed run
    begins at batch 0.

    ``iter(feed)`` begins at ``position``. Leaving a pass in its middle (a stop, a failure) keeps
    the position. Calling ``iter`` during a pass abandons that pass and begins the next one. If the
    number of batches is certain, the feed fetches nothing ahead, so random numbers are drawn in the
    order of a plain PyTorch loop. Otherwise it fetches one batch ahead, because the last batch of a
    pass must be known to be the last before it is trained on.

    With several processes, every rank gives as many batches as the rank with the fewest. The ranks
    exchange their numbers of batches at the start of each pass. If one of them does not know its
    number, the ranks exchange once per ``gradient_accumulation_steps`` batches instead.

    Attributes:
        holds_iterator: whether the feed keeps a reference to its iterator, so that only ``close``
            ends it. Without the reference the iterator ends when its user drops it, and Python
            swallows a Ctrl-C that arrives while it deletes an object.
        promised_length: the number of batches that ``len(data)`` promised in the last call of
            ``look``; None without a promise. For display only: nothing relies on it.

    Args:
        data: a ``DataLoader``, prepared with Accelerate or not, or any iterable of batches.
        accelerator: prepares a loader that is not prepared yet, and determines the device of the
            batches. Without an accelerator ``data`` is used unchanged.
        even_batches: whether every process must see the same number of batches, as training does.
            If False, no sample is repeated to make batches even, as metrics require.

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
        self._source = prepare_source(data, accelerator, even_batches)
        # A loader that Accelerate would harm is not prepared, so it is not listed either.
        self._is_on_accelerate_list = can_prepare(data)
        self.use_for(self)
        is_distributed = accelerator is not None and accelerator.num_processes > 1
        ends_together = is_distributed and even_batches and not self._source.knows_its_end
        # A rank without a batch is valid here: another rank has those of a small data set.
        self._may_be_empty = is_distributed and not even_batches
        self._device = device_of_batches(self._source.loader, accelerator)
        self.position = FeedPosition(getattr(self.loader, "iteration", 0), 0)
        # Weak, so that the iterator (and its workers) end when the engine drops it.
        self._iterator_ref: ref[Generator[Any, None, None]] | None = None
        self._held_iterator: Generator[Any, None, None] | None = None
        self.holds_iterator = False
        self._pass_end = PassEnd(self._source, accelerator if ends_together else None)
        if accelerator is not None:
            self._source.set_window(accelerator.gradient_accumulation_steps)
        self.is_last = False
        self.promised_length: int | None = None
        if self._pass_end.length == 0 and not self._may_be_empty:
            raise ValueError(self._no_batches_message())

    @property
    def loader(self) -> Any:
        """The prepared loader, or the iterable of batches."""
        return self._source.loader

    def use_for(self, user: object) -> None:
        """Keeps the loader on Accelerate's list of prepared loaders while ``user`` exists."""
        if self._accelerator is not None and self._is_on_accelerate_list:
            add_loader_owner(user, self._accelerator, self.loader)

    def leave(self, user: object) -> None:
        """Undoes ``use_for`` for ``user``: Accelerate no longer lists the loader for it."""
        if self._accelerator is not None:
            remove_loader_owner(user, self._accelerator, self.loader)

    @property
    def can_repeat(self) -> bool:
        """Returns whether earlier batches can be given again; those of an iterator cannot."""
        return self._source.can_repeat

    @property
    def reaches_all_ranks(self) -> bool:
        """Returns whether every rank certainly has a batch in a pass; equal on all ranks."""
        return self._source.reaches_all_ranks

    @property
    def batches_left(self) -> int | None:
        """Returns the number of batches from the current one to the last; None if not known."""
        if self.is_last:
            return 1
        return (
            None
            if self._pass_end.length is None
            else self._pass_end.length - self.position.batches + 1
        )

    @property
    def generators(self) -> dict[str, RandomGenerator]:
        """The random generators that belong to the loader and the data, by name."""
        return self._source.generators

    @property
    def found_generators(self) -> FoundGenerators:
        """The random generators by name, with reasons why the search may have missed others."""
        return self._source.found_generators

    @property
    def roots(self) -> dict[str, Any]:
        """The objects that batches are made by (data set, samplers, …), by name."""
        return self._source.roots

    @property
    def length(self) -> int | None:
        """The number of batches in a pass; None if the number is not certain."""
        return self._pass_end.length

    @property
    def facts(self) -> dict[str, int | str | None]:
        """Properties of the data that must be equal for a resumed run to see the same batches."""
        return self._source.facts()

    def __len__(self) -> int:
        """Returns the number of batches in a pass; raises a TypeError if it is not certain."""
        if not self._pass_end.length:
            raise TypeError(f"{type(self.loader).__name__} has no certain number of batches")
        return self._pass_end.length

    def __iter__(self) -> Iterator[Any]:
        if self._current_iterator() is not None:
            self.next_pass()
        elif self.is_last:  # the last batch was given, but the end of the pass was interrupted
            self._source.end_pass(*self.position)
            self._advance_to_next_pass()
        iterator = self._iterate_pass()
        self._iterator_ref = ref(iterator)
        self._held_iterator = iterator if self.holds_iterator else None
        return iterator

    def _current_iterator(self) -> Generator[Any, None, None] | None:
        return None if self._iterator_ref is None else self._iterator_ref()

    @property
    def at_start(self) -> bool:
        """Returns whether no batch of this pass has been given."""
        return not self.position.batches

    def update_length(self) -> None:
        """Updates the number of batches of this pass, or only the promised one within a pass.

        The number may differ from pass to pass: a data set grows, a sampler draws a number. Random
        generators are left unchanged: a ``set_epoch`` that draws is called again when the pass
        begins. The ranks compare their numbers only then; until then this rank's own is shown.
        """
        with RandomState.preserved(generators=self.generators):
            if self.at_start:
                self._source.set_pass(self.position.data_pass)
                self._pass_end.update_length()
            self.promised_length = self._source.promised_length

    def seek(self, position: FeedPosition) -> None:
        """Moves to ``position``; the next ``iter`` begins there. An iterator is not moved.

        A pass that was begun before keeps the order of its samples, unless its sampler draws from
        a global generator while it is iterated. If each process iterates a sampler itself, the
        batches up to ``position`` are not loaded.
        """
        if self.can_repeat:
            self._pass_end.ahead.clear()
            self._source.furthest_position = self.position
            # In one statement, so that Ctrl-C between two lines cannot leave half of the change.
            self.is_last, self.position = False, FeedPosition(*position)
        self.close()

    def roll_back_to(self, position: FeedPosition) -> None:
        """Moves back to ``position``, so that later batches are given again.

        An iterator cannot be moved back: a warning says how many of its batches are lost.
        """
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
        """Abandons the rest of this pass, if one was begun, and moves to the next one."""
        self.close()
        if self.position.batches:
            self._advance_to_next_pass()

    def finish(self) -> None:
        """Ends the pass after its last batch, so that Accelerate and the workers end theirs."""
        iterator = self._current_iterator()
        if self.is_last and iterator is not None:
            next(iterator, None)

    def close(self) -> None:
        """Ends the iteration: stops workers, and takes the loader off Accelerate's active ones."""
        iterator = self._current_iterator()
        if self.can_repeat:
            self._pass_end.ahead.clear()
        if iterator is not None:
            iterator.close()
        # Last, so that a call that was interrupted before can be repeated.
        self._iterator_ref = self._held_iterator = None

    def deactivate(self) -> None:
        """Takes the loader off Accelerate's active ones if it was put back after ``close``."""
        if hasattr(self.loader, "end"):
            self.loader.end()

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in the data, and all that another process needs to resume there.

        The values are numbers, strings, lists, dicts and tensors, which ``torch.load`` reads with
        ``weights_only=True``. The global random generators are not included: code outside the feed
        draws from them too, so the checkpoint saves them.
        """
        # After the last batch of a pass a resumed run begins the next pass.
        position = FeedPosition(self.position.data_pass + 1, 0) if self.is_last else self.position
        return {
            "position": list(position),
            "samples": self._source.samples_before(position),
            "workers": self._source.worker_states_at(position),
            "order": self._source.order_state_at(position),
            "source": self._source.state_dict(),
            "facts": self._source.facts(),
            "place": self._source.place_state_at(position),
            "draws_in_workers": self._source.draws_in_workers,
        }

    def doubts(self) -> list[str]:
        """Returns the reasons why ``state_dict`` may lack some of the state of the data."""
        return [*self._source.doubts(), *self._source.snapshots.doubts(self._source)]

    def starts_over(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether the saved position is invalid in this data, so the next pass starts."""
        return self.can_repeat and self._compare_data(state_dict).starts_over

    def ends_pass(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether too few samples of the saved pass are left for one more batch."""
        return self.can_repeat and self._compare_data(state_dict).ends_pass

    def changes(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns each change of the data since the feed was saved, with its consequence."""
        return self._compare_data(state_dict).reasons() if self.can_repeat else []

    def remarks(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns which sampler has to be iterated again to resume, which may take long."""
        batches = state_dict["position"][1]
        found = self._source.replayed_sampler
        is_placed = self._has_place_state(state_dict)
        if not batches or found is None or is_placed or self.starts_over(state_dict):
            return []
        what = f"the {state_dict['samples']} samples" if state_dict.get("samples") else "all"
        return [f"a {type(found).__name__} is iterated again over {what} before this position"]

    def _has_place_state(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether a state of the data, saved with the feed, restores the position."""
        is_taken = self._source.accepts_order_state(state_dict.get("order"))
        return is_taken or self._source.snapshots.can_restore(self._source, state_dict.get("place"))

    def _resumes_from_own_state(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether the data resume from their own state, even if facts have changed."""
        is_taken = self._source.accepts_order_state(state_dict.get("order"))
        return is_taken or self._source.resumes_from_own_state(state_dict)

    def _compare_data(self, state_dict: Mapping[str, Any]) -> ChangedData:
        samples, accelerator = state_dict.get("samples"), self._accelerator
        return ChangedData(
            then=state_dict["facts"],
            now=self.facts,
            batches=state_dict["position"][1],
            samples=samples,
            batches_left=None if samples is None else self._source.batches_after(samples),
            window_size=accelerator.gradient_accumulation_steps if accelerator else 1,
            has_state=self._resumes_from_own_state(state_dict),
            is_replay_refused=not state_dict.get("replay", True) and self._source.is_replayed,
        )

    def differences(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns the reasons why the next batches may differ from those of the saved feed."""
        if not self._source.can_repeat:
            return ["an iterator cannot be moved: it continues from where it is"]
        if not self._source.is_reader:
            return []  # the rank that loads the batches says what differs
        found = []
        places, place = self._source.snapshots, state_dict.get("place")
        order = state_dict.get("order")
        generators = state_dict["source"]["generators"].keys()
        # A generator that exists on one side only is not restored, unless the state of a sampler
        # or of a stream includes it.
        for name in sorted(generators ^ self._source.generators.keys()):
            is_included = places.restores(self._source, place, name)
            if not is_included and not self._source.order_state_includes(name, order):
                when = "then" if name in generators else "now"
                found.append(f"there is a random generator {name} only {when}")
        changed = self._compare_data(state_dict)
        is_within = state_dict["position"][1] and not (changed.starts_over or changed.ends_pass)
        has_workers = state_dict["source"].get("has_workers")
        found += self._source.place_state_differences(FeedPosition(*state_dict["position"]), place)
        found += self._source.order_state_differences(order)
        is_placed = self._source.is_entered_exactly or self._has_place_state(state_dict)
        if is_within and not is_placed:
            found.append(
                "batches that were given are gone through again: what they draw at random is drawn "
                f"again until this pass ends; without such draws it is exact{self._source.remedy}"
            )
        restores_worker_draws = self._source.draws_in_workers and state_dict.get(
            "draws_in_workers", False
        )
        if self._usable_worker_states(state_dict) is not None or (
            restores_worker_draws and places.can_restore(self._source, place)
        ):
            pass  # the workers continue from their states
        elif is_within and not self._source.is_in_order:
            found.append(
                "workers give batches in any order (in_order=False), and which of them came first "
                "is not saved: samples can come twice in this pass or not at all"
            )
        elif has_workers:
            found.append(
                "what the data set draws at random in persistent workers is drawn again; without "
                "such draws it is exact"
            )
        elif self.facts["workers"] and is_within and not changed.has_other_workers:
            found.append(
                "what the data set draws at random in its workers is drawn again until this pass "
                "ends; without such draws it is exact"
            )
        return found

    def _usable_worker_states(self, state_dict: Mapping[str, Any]) -> Any:
        """Returns the states from which the workers continue; None if they start from scratch."""
        states, changed = state_dict.get("workers"), self._compare_data(state_dict)
        is_same = not changed.reasons() and not changed.starts_over
        return states if is_same and self._source.accepts_worker_states(states) else None

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Moves to the saved position: the next ``iter`` gives the batches that follow there.

        Earlier batches are not loaded if the loader has a sampler. With torch's ``BatchSampler``
        the batch size may have changed. If the position is invalid in this data, or can only be
        reached by a replay and ``state_dict["replay"]`` is False, the feed moves to the next pass.
        An iterator is not moved.
        """
        self._source.load_state_dict(state_dict["source"])
        position, place = FeedPosition(*state_dict["position"]), state_dict.get("place")
        changed, order = self._compare_data(state_dict), state_dict.get("order")
        self._source.load_order_state(
            position, None if changed.starts_over else order, ends=changed.ends_pass
        )
        if changed.starts_over or changed.ends_pass:
            position, place = FeedPosition(position.data_pass + 1, 0), None
        elif changed.samples is not None and (
            changed.keeps_samples or self._source.accepts_order_state(order)
        ):
            self._source.set_samples_before(position, changed.samples)
        self._source.load_worker_states(position, self._usable_worker_states(state_dict))
        self._source.load_place_state(position, place)
        self.seek(position)
        with RandomState.preserved(generators=self.generators):
            self._source.set_pass(self.position.data_pass)
            self._pass_end.synchronize_length()

    def shares_place_with(self, other: "DataFeed") -> bool:
        """Returns whether the state of one object holds the positions of both feeds."""
        mine, others = self._source.keeper, other._source.keeper
        return mine is not None and others is not None and mine.holder is others.holder

    def restore_once(self, others: Iterable["DataFeed"]) -> None:
        """Lets the first of several feeds that is iterated restore the object that they share."""
        self._source.snapshots.restore_once(each._source.snapshots for each in others)

    def _iterate_pass(self) -> Generator[Any, None, None]:
        """Yields the rest of a pass from ``position`` on; begins it with the first ``next``."""
        if not self.at_start and self.position.batches == self._pass_end.length:
            # All batches were given, but a stop or a resume came before the end was reached.
            self._source.end_pass(*self.position)
            self._advance_to_next_pass()
        if self.can_repeat:
            # Batches that an abandoned iteration had fetched are loaded again; an iterator cannot
            # give its batches again, so they are kept.
            self._pass_end.ahead.clear()
        length_before = self._pass_end.length
        ahead, to_device, moves = self._pass_end.ahead, self._to_device, self._device is not None
        self._source.snapshots.note_generators(self._source)
        with ExitStack() as stack:
            stack.enter_context(self._source.active(self.position.data_pass))
            self._pass_end.synchronize_length(
                global_generators_digest() if self._draws_order_on_each_rank else 0
            )
            if not self.at_start and self._pass_end.length != length_before:
                self._warn_of_change(length_before)
            batches = stack.enter_context(closing(self._source.batches(*self.position)))
            for is_last in self._pass_end.fetch(batches, *self.position):
                # Counted before it is given, so that a stop during its iteration finds it counted.
                data_pass, given = self.position
                self.position = FeedPosition(data_pass, given + 1)
                self.is_last = is_last
                if is_last:
                    self._source.mark_last_batch()
                # Without a variable: the suspended generator would keep the batch alive until the
                # next one is asked for, through a validation say.
                yield to_device(ahead.popleft()) if moves else ahead.popleft()
        if not self.position.batches and not self._may_be_empty:
            raise ValueError(self._no_batches_message())
        self._iterator_ref = None
        self._advance_to_next_pass()

    @property
    def _draws_order_on_each_rank(self) -> bool:
        """Returns whether each rank is about to draw the order of this pass for itself.

        The ranks compare their global generators then, since unequal ones give unequal orders.
        """
        accelerator = self._accelerator
        if accelerator is None or accelerator.num_processes == 1 or not self.at_start:
            return False
        # An iterable that is not a DataLoader is not divided by Accelerate: its author has given
        # each rank its own batches, and their orders may differ.
        return isinstance(self.loader, DataLoader) and rank_dependent_part(self.loader) is not None

    def _advance_to_next_pass(self) -> None:
        position = FeedPosition(self.position.data_pass + 1, 0)
        self.is_last, self.position = False, position
        if hasattr(self.loader, "iteration"):
            self.loader.iteration = self.position.data_pass

    def _to_device(self, batch: Any) -> Any:
        non_blocking = self._accelerator is not None and self._accelerator.non_blocking
        return send_to_device(batch, self._device, non_blocking=non_blocking)

    def _warn_of_change(self, length_before: int | None) -> None:
        warnings.warn(
            f"the data has {self._pass_end.length} batches a pass now, and had {length_before} "
            "when the pass was begun that continues now, after batch "
            f"{self.position.batches}: samples can come twice in it or not at all; change data "
            "between two passes",
            stacklevel=2,
        )

    def _no_batches_message(self) -> str:
        again = "" if self.can_repeat else "; an iterator is used up after one pass"
        return (
            f"`data` gave no batch in pass {self.position.data_pass + 1}, it must give at least "
            f"one: check the {_type_name(self.loader)} and its data set{again}"
        )


def _remedy_for(data: Any) -> str:
    if isinstance(data, Dataset):
        return "DataLoader(dataset, batch_size=32), or another size"
    return "a DataLoader, a list of batches or a generator"


class Feeds:
    """The feeds of one engine, by their data.

    No loader is prepared twice, and data that is used again continues at the position where it was
    left. A loader holds its feed in an attribute, so both live equally long; this object holds the
    newest feed only, and only that one's loader is on Accelerate's list of prepared loaders.

    Args:
        accelerator: prepares the loaders.
        even_batches: as in ``DataFeed``.
    """

    def __init__(self, accelerator: Accelerator, even_batches: bool = True) -> None:
        self._accelerator = accelerator
        self._even_batches = even_batches
        self._newest: tuple[Any, DataFeed | None] = (None, None)
        self._remembered: list[tuple[Any, DataFeed]] = []

    def feed_for(self, data: Any, *, keeps: bool = False) -> DataFeed:
        """Returns the feed of ``data``; creates it on first use.

        Args:
            data: a loader, another iterable of batches, or a feed, which is returned unchanged.
            keeps: whether to remember, for the lifetime of this object, also the feed of data that
                is not a ``DataLoader``. Otherwise such a feed is remembered while it is the newest.
        """
        if isinstance(data, DataFeed):
            return data
        feed = self.existing_feed(data)
        if feed is None:
            feed = DataFeed(data, self._accelerator, even_batches=self._even_batches)
        if (
            keeps
            and not isinstance(data, DataLoader)
            and all(data is not e for e, _ in self._remembered)
        ):
            self._remembered.append((data, feed))
        if feed is not self._newest[1]:
            self.register(data, feed)
        return feed

    def existing_feed(self, data: Any) -> DataFeed | None:
        """Returns the feed of ``data``; None if there is none, or it was forgotten."""
        if isinstance(data, DataLoader):
            return _loader_feeds(data).get(self)
        found = (feed for each, feed in (self._newest, *self._remembered) if each is data)
        return next(found, None)

    def register(self, data: Any, feed: DataFeed) -> None:
        """Registers ``feed`` as the feed of ``data``, and as the newest one."""
        _, former = self._newest
        self._newest = data, feed
        for loader in (data, feed.loader):
            if isinstance(loader, DataLoader):
                _loader_feeds(loader)[self] = feed
        feed.use_for(self)
        # The loader holds the feed from now on: registered for itself, the feed would keep the
        # loader on Accelerate's list for as long as that lives.
        feed.leave(feed)
        if former is not None and former is not feed:
            former.leave(self)


def load_between_passes(
    states: Iterable[tuple[DataFeed, Mapping[str, Any]]], others: Iterable[DataFeed] = ()
) -> None:
    """Moves feeds to positions that were saved together, each at the start of a pass.

    Several feeds may share data. What one of them restores lazily, when it is iterated, would undo
    what another feed has done with that data by then. So everything is restored at once, except for
    an object whose state holds the position: the first feed that is iterated restores that object,
    for all feeds that share it.

    Args:
        states: the feeds, each with its state.
        others: feeds that are at the positions of that time already.
    """
    loaded = []
    for feed, state in states:
        place, order = state.get("place"), state.get("order")
        if place is not None:
            # The source's own state has the same objects and generators, and is restored at once.
            place = {**place, "objects": {}, "generators": {}}
            # A sampler that was left in mid-pass begins from its start when it is iterated; its
            # state would make it continue in the middle.
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


class _LoaderFeeds(ExcludedFromSearch):
    """The feeds of one loader, one for each ``Feeds``, kept in an attribute of the loader.

    A feed refers to its loader. In a module-level table of weak keys the values would keep their
    keys alive, and nothing would ever be freed. As an attribute, the loader and its feeds form a
    reference cycle, which the garbage collector frees. A copy of the loader has no feeds.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = ref(loader)
        self.feeds: WeakKeyDictionary[Feeds, DataFeed] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy or pickle of the loader gets None


def _loader_feeds(loader: Any) -> "WeakKeyDictionary[Feeds, DataFeed]":
    known = vars(loader).get("_ignite_hooks_feeds")
    if known is None or known.loader() is not loader:
        known = loader._ignite_hooks_feeds = _LoaderFeeds(loader)
    return known.feeds  # type: ignore[no-any-return]


def _type_name(loader: Any) -> str:
    """Returns the name of a loader's type as users know it, without Accelerate's subclasses."""
    return "DataLoader" if isinstance(loader, DataLoader) else type(loader).__name__
