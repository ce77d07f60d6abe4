"""Feeds: objects that iterate a loader and keep the position, so that a run can be resumed.

A pass is one iteration over the whole loader. A position is the number of a pass and the number of
batches of that pass that the feed has given to the engine. A source is the adapter through which a
feed reads its loader (see ``sources.py``).

The saved run is the run that wrote a checkpoint. The resumed run is the present run, which
continues from the checkpoint. A replay reaches a position by loading the earlier batches of the
pass again.
"""

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
    """Iterates a loader for an engine, pass by pass, and keeps the position in the data.

    A feed does two things that Ignite does not do. It lets a resumed run continue in the middle of
    a pass. And it ends each pass as Accelerate requires: it asks the loader for another batch after
    the last one, so that the code at the end of Accelerate's ``__iter__`` runs. An engine of Ignite
    does not ask for this extra batch if it knows the number of batches. Then the loader's epoch
    (the argument of ``set_epoch``) does not advance. And the finished loader remains Accelerate's
    active loader (the loader that counts as being iterated). As long as a finished loader is
    active, Accelerate does not accumulate gradients, even if the engine now iterates a list.

    ``iter(feed)`` begins at ``position``. In the middle of a pass there are two cases. If a stop or
    a failure has closed the iterator of the pass, ``iter(feed)`` continues the pass. If the
    iterator is still open, ``iter(feed)`` abandons the pass and begins the next pass.

    The last batch of a pass closes the accumulation window (the batches whose gradients are
    accumulated for one optimizer step). So before the engine trains on the last batch, the feed
    must know that this batch is the last. If the number of batches is certain, the feed counts the
    batches and fetches nothing ahead, so random numbers are drawn in the same order as in a plain
    PyTorch loop. If the number is not certain, the feed fetches at least one batch ahead.

    With several processes, all ranks end a pass after the same number of batches: the smallest
    number that a rank has. The ranks exchange their numbers of batches at the start of each pass.
    If a rank's number of batches is not certain, the ranks instead exchange how many batches they
    have fetched, once per ``gradient_accumulation_steps`` batches.

    Attributes:
        holds_iterator: whether the feed keeps a reference to its iterator, so that only ``close``
            ends the iteration. Without the reference Python deletes the iterator when the caller
            drops it, and swallows a Ctrl-C that arrives during the deletion.
        is_last: whether the most recent batch is the last batch of its pass.
        position: the position in the data; the next ``iter`` begins there.
        promised_length: the ``len(data)`` that the last call of ``update_length`` found; None if
            ``data`` has no length. The number may be wrong, so it is only for display.

    Args:
        data: a ``DataLoader``, prepared with Accelerate or not, or any iterable of batches.
        accelerator: prepares a loader that is not prepared yet, and determines the device of the
            batches. Without an accelerator ``data`` is used unchanged.
        even_batches: whether every process gets the same number of batches, as training requires.
            For this, samples may be repeated. If False, no sample is repeated, as metrics require.

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
        # A loader that Accelerate cannot prepare without a loss is not on its list of prepared
        # loaders.
        self._is_on_accelerate_list = can_prepare(data)
        self.add_owner(self)
        is_distributed = accelerator is not None and accelerator.num_processes > 1
        ends_together = is_distributed and even_batches and not self._source.knows_its_end
        # Without `even_batches`, some ranks may get no batch of a small data set.
        self._may_be_empty = is_distributed and not even_batches
        self._device = device_of_batches(self._source.loader, accelerator)
        self.position = FeedPosition(getattr(self.loader, "iteration", 0), 0)
        # A weak reference lets the iterator and its workers end when the engine drops the iterator.
        self._iterator_ref: ref[Generator[Any, None, None]] | None = None
        self._held_iterator: Generator[Any, None, None] | None = None
        self.holds_iterator = False
        self._pass_end = PassEnd(self._source, accelerator if ends_together else None)
        if accelerator is not None:
            self._source.set_window_size(accelerator.gradient_accumulation_steps)
        self.is_last = False
        self.promised_length: int | None = None
        if self._pass_end.length == 0 and not self._may_be_empty:
            raise ValueError(self._no_batches_message())

    @property
    def loader(self) -> Any:
        """The prepared loader, or the iterable of batches."""
        return self._source.loader

    def add_owner(self, owner: object) -> None:
        """Keeps the loader on Accelerate's list of prepared loaders while ``owner`` exists."""
        if self._accelerator is not None and self._is_on_accelerate_list:
            add_loader_owner(owner, self._accelerator, self.loader)

    def remove_owner(self, owner: object) -> None:
        """Undoes ``add_owner``: the loader leaves Accelerate's list if it has no other owner."""
        if self._accelerator is not None:
            remove_loader_owner(owner, self._accelerator, self.loader)

    @property
    def can_repeat(self) -> bool:
        """Returns whether earlier batches can be given again.

        False only for an iterator that has no ``state_dict``, for example a generator.
        """
        return self._source.can_repeat

    @property
    def reaches_all_ranks(self) -> bool:
        """Returns whether it is certain that every rank has at least one batch in each pass.

        All ranks return the same value.
        """
        return self._source.reaches_all_ranks

    @property
    def batches_left(self) -> int | None:
        """The number of batches from the current batch to the last batch of the pass, inclusive.

        None if the number is not known.
        """
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
        """The generators found in the data, by name, and reasons why there may be others."""
        return self._source.found_generators

    @property
    def roots(self) -> dict[str, Any]:
        """The objects that make the batches (data set, samplers, …), by name."""
        return self._source.roots

    @property
    def length(self) -> int | None:
        """The number of batches in a pass; None if the number is not certain."""
        return self._pass_end.length

    @property
    def facts(self) -> dict[str, int | str | None]:
        """The facts: the properties of the data on which the batches depend, by name.

        A resumed run gets the same batches only if its facts are those of the saved run.
        """
        return self._source.facts()

    def __len__(self) -> int:
        """Returns the number of batches in a pass; raises a TypeError if it is not certain."""
        if not self._pass_end.length:
            raise TypeError(f"{type(self.loader).__name__} has no certain number of batches")
        return self._pass_end.length

    def __iter__(self) -> Iterator[Any]:
        if self._current_iterator() is not None:
            self.next_pass()
        elif self.is_last:
            # The last batch was given, but the iterator was closed before it could end the pass.
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
        """Updates ``promised_length``, and ``length`` if the feed is at the start of a pass.

        The number of batches may differ from pass to pass, for example because a data set grows or
        a sampler draws its number of samples.

        At the start of a pass, this method calls ``set_epoch`` of the data, because the number of
        batches may depend on the epoch. ``set_epoch`` may draw random numbers. When the pass
        begins, ``set_epoch`` is called again, and must draw the same numbers. So this method
        restores the random generators before it returns.

        The ranks compare their numbers of batches when the pass begins. Until then ``length`` is
        the number of this rank alone.
        """
        with RandomState.preserved(generators=self.generators):
            if self.at_start:
                self._source.set_pass(self.position.data_pass)
                self._pass_end.update_length()
            self.promised_length = self._source.promised_length

    def seek(self, position: FeedPosition) -> None:
        """Moves to ``position``, so that the next ``iter`` begins there.

        Data that cannot be repeated (see ``can_repeat``) is not moved. A pass that the feed has
        begun before has the same order of samples again, unless a sampler draws from a global
        generator while it is iterated.

        A loader with a sampler does not load the batches before ``position`` again. There are two
        exceptions: Accelerate's ``DataLoaderDispatcher``, which loads batches on rank 0 for all
        ranks, and a loader whose class overrides the iteration.
        """
        if self.can_repeat:
            self._pass_end.ahead.clear()
            self._source.position_before_move = self.position
            # One statement changes both attributes, so that Ctrl-C cannot come between the changes.
            self.is_last, self.position = False, FeedPosition(*position)
        self.close()

    def roll_back_to(self, position: FeedPosition) -> None:
        """Moves back to ``position``, so that the batches after this position are given again.

        Data that cannot be repeated (see ``can_repeat``) is not moved back. Instead, a warning says
        how many batches are lost.
        """
        lost = self.position.batches - position.batches
        if position == self.position:
            self.close()
        elif self.can_repeat:
            self.seek(position)
        elif lost > 0:
            lost_batches = "batch" if lost == 1 else f"{lost} batches"
            warnings.warn(
                f"`data` is an iterator, which cannot give the last {lost_batches} again: the run "
                "continues with the next batch, and does not train on what was lost. A list or a "
                "DataLoader can give batches again",
                stacklevel=2,
            )

    def next_pass(self) -> None:
        """Abandons the rest of the present pass, and moves to the start of the next pass.

        If no batch of the present pass has been given, the position stays the same.
        """
        self.close()
        if self.position.batches:
            self._advance_to_next_pass()

    def finish(self) -> None:
        """Asks the iterator for one more batch after the last one.

        The iterator then reaches its end, so that Accelerate and the workers end the pass. If the
        last batch has not been given yet, this method does nothing.
        """
        iterator = self._current_iterator()
        if self.is_last and iterator is not None:
            next(iterator, None)

    def close(self) -> None:
        """Ends the iteration: stops workers, and removes the loader from the active loaders.

        The active loaders are Accelerate's list of the loaders that are being iterated.
        """
        iterator = self._current_iterator()
        if self.can_repeat:
            self._pass_end.ahead.clear()
        if iterator is not None:
            iterator.close()
        # Cleared last, so that the next call of this method still finds the iterator if Ctrl-C
        # interrupts `iterator.close()` above.
        self._iterator_ref = self._held_iterator = None

    def deactivate(self) -> None:
        """Removes the loader from the active loaders.

        ``close`` removes the loader, too. But if the feed is closed while ``interrupt()`` suspends
        the run, the end of the suspension makes the loader active again (see ``deactivated`` in
        ``active_loader.py``). Then the trainer calls this method.
        """
        if hasattr(self.loader, "end"):
            self.loader.end()

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in the data, and the state that another process needs to resume.

        The values are numbers, strings, lists, dicts and tensors, which ``torch.load`` reads with
        ``weights_only=True``. The states of the global random generators are not included. The
        checkpoint saves these states itself, because code outside the feed also draws from the
        global generators.

        Returns:
            A dict with these keys:

            - ``position``: the position, as a list of two numbers.
            - ``samples``: how many samples of the pass come before the position; None if not
              certain.
            - ``workers``: the states of the loader workers at the position; None if not known.
            - ``order``: the state of a recorded sampler (see ``recorded_order.py``), or None.
            - ``source``: the states of the random generators and of other objects of the data.
            - ``facts``: see the property ``facts``.
            - ``place``: the snapshot of the data at the position (see ``snapshots.py``), or None.
            - ``draws_in_workers``: whether the snapshot includes the random states of the workers.
        """
        # If the last batch of a pass has been given, a resumed run begins the next pass.
        position = FeedPosition(self.position.data_pass + 1, 0) if self.is_last else self.position
        return {
            "position": list(position),
            "samples": self._source.samples_before(position),
            "workers": self._source.worker_states_at(position),
            "order": self._source.order_state_at(position),
            "source": self._source.state_dict(),
            "facts": self._source.facts(),
            "place": self._source.snapshot_at(position),
            "draws_in_workers": self._source.draws_in_workers,
        }

    def doubts(self) -> list[str]:
        """Returns the reasons why ``state_dict`` may lack some of the state of the data."""
        return [*self._source.doubts(), *self._source.snapshots.doubts(self._source)]

    def drops_pass(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether a resume drops the saved pass and begins the next pass.

        True if the saved position is invalid in this data. Also True if only a replay reaches the
        position, and ``ResumeCheckpoint(replay=False)`` has set ``state_dict["replay"]`` to False.
        """
        return self.can_repeat and self._compare_data(state_dict).drops_pass

    def ends_pass(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether a resume ends the saved pass and begins the next pass.

        True if the data or the batch size have changed, and the remaining samples of the pass make
        no batch.
        """
        return self.can_repeat and self._compare_data(state_dict).ends_pass

    def data_changes(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns sentences that name the changes of the data since the save, and their effects."""
        return self._compare_data(state_dict).reasons() if self.can_repeat else []

    def replay_notes(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns a list with a note if a resume iterates a sampler again up to the saved position.

        Such an iteration may take long. If a resume needs no such iteration, the list is empty.
        """
        batches = state_dict["position"][1]
        sampler = self._source.replayed_sampler
        restores_position = self._can_restore_here(state_dict)
        if not batches or sampler is None or restores_position or self.drops_pass(state_dict):
            return []
        what = (
            f"the {state_dict['samples']} samples" if state_dict.get("samples") else "all elements"
        )
        return [f"a {type(sampler).__name__} is iterated again over {what} before this position"]

    def _can_restore_here(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether this rank restores the saved position from a saved state of the data.

        Such a state is the state of a recorded sampler (see ``recorded_order.py``) or a snapshot
        (see ``snapshots.py``).
        """
        accepts_order = self._source.accepts_order_state(state_dict.get("order"))
        return accepts_order or self._source.snapshots.can_restore(
            self._source, state_dict.get("place")
        )

    def _can_restore_on_reader(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether the rank that reads the data restores the position from a saved state.

        If rank 0 sends the batches to all ranks, only rank 0 reads. Otherwise each rank reads.
        """
        accepts_order = self._source.accepts_order_state(state_dict.get("order"))
        return accepts_order or self._source.can_restore_on_reader(state_dict)

    def _compare_data(self, state_dict: Mapping[str, Any]) -> ChangedData:
        samples, accelerator = state_dict.get("samples"), self._accelerator
        return ChangedData(
            then=state_dict["facts"],
            now=self.facts,
            batches=state_dict["position"][1],
            samples=samples,
            batches_left=None if samples is None else self._source.batches_after(samples),
            window_size=accelerator.gradient_accumulation_steps if accelerator else 1,
            has_state=self._can_restore_on_reader(state_dict),
            is_replay_refused=not state_dict.get("replay", True) and self._source.is_replayed,
        )

    def differences(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns the reasons why the next batches may differ from those of the saved run."""
        if not self._source.can_repeat:
            return [
                "an iterator cannot be moved to the saved position: the run takes the next batches "
                "of the iterator"
            ]
        if not self._source.is_reader:
            return []  # only rank 0 loads batches, and gives the reasons for all ranks
        found = []
        snapshots, snapshot = self._source.snapshots, state_dict.get("place")
        order = state_dict.get("order")
        generators = state_dict["source"]["generators"].keys()
        # A generator that exists in only one of the two runs is not restored, unless the state of
        # a sampler or of an iterable data set includes the generator.
        for name in sorted(generators ^ self._source.generators.keys()):
            is_included = snapshots.restores(self._source, snapshot, name)
            if not is_included and not self._source.order_state_includes(name, order):
                existence = (
                    "was saved, but does not exist now"
                    if name in generators
                    else "exists now, but was not saved"
                )
                found.append(f"the random generator {name} {existence}")
        changed = self._compare_data(state_dict)
        is_within = state_dict["position"][1] and not (changed.drops_pass or changed.ends_pass)
        has_workers = state_dict["source"].get("has_workers")
        found += self._source.snapshot_differences(FeedPosition(*state_dict["position"]), snapshot)
        found += self._source.order_state_differences(order)
        restores_position = self._source.is_entered_exactly or self._can_restore_here(state_dict)
        if is_within and not restores_position:
            found.append(
                "earlier batches of this pass are iterated again: if the data draws random numbers "
                "during a pass, these numbers differ until this pass ends; if the data draws none, "
                f"the resume is exact{self._source.remedy}"
            )
        restores_worker_draws = self._source.draws_in_workers and state_dict.get(
            "draws_in_workers", False
        )
        if self._usable_worker_states(state_dict) is not None or (
            restores_worker_draws and snapshots.can_restore(self._source, snapshot)
        ):
            pass  # the workers continue from their states
        elif is_within and not self._source.is_in_order:
            found.append(
                "workers give batches in any order (in_order=False), and the order in which they "
                "gave earlier batches is not saved: samples can come twice in this pass or not at "
                "all"
            )
        elif has_workers:
            found.append(
                "random numbers that the data set draws in persistent workers differ; if the data "
                "set draws none, the resume is exact"
            )
        elif self.facts["workers"] and is_within and not changed.has_other_workers:
            found.append(
                "random numbers that the data set draws in its workers differ until this pass "
                "ends; if the data set draws none, the resume is exact"
            )
        return found

    def _usable_worker_states(self, state_dict: Mapping[str, Any]) -> Any:
        """Returns the saved states from which workers continue; None if no state can be used."""
        states, changed = state_dict.get("workers"), self._compare_data(state_dict)
        is_same = not changed.reasons() and not changed.drops_pass
        return states if is_same and self._source.accepts_worker_states(states) else None

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Moves to the saved position: the next ``iter`` gives the batches after this position.

        Earlier batches are not loaded if the loader has a sampler. With torch's ``BatchSampler``
        the batch size may differ from the batch size at the save.

        If ``drops_pass`` or ``ends_pass`` is true for ``state_dict``, the feed moves to the start
        of the next pass instead. Data that cannot be repeated (see ``can_repeat``) is not moved.
        """
        self._source.load_state_dict(state_dict["source"])
        position, snapshot = FeedPosition(*state_dict["position"]), state_dict.get("place")
        changed, order = self._compare_data(state_dict), state_dict.get("order")
        self._source.load_order_state(
            position, None if changed.drops_pass else order, ends=changed.ends_pass
        )
        if changed.drops_pass or changed.ends_pass:
            position, snapshot = FeedPosition(position.data_pass + 1, 0), None
        elif changed.samples is not None and (
            changed.keeps_samples or self._source.accepts_order_state(order)
        ):
            self._source.set_samples_before(position, changed.samples)
        self._source.load_worker_states(position, self._usable_worker_states(state_dict))
        self._source.load_snapshot(position, snapshot)
        self.seek(position)
        with RandomState.preserved(generators=self.generators):
            self._source.set_pass(self.position.data_pass)
            self._pass_end.synchronize_length()

    def shares_keeper_with(self, other: "DataFeed") -> bool:
        """Returns whether both feeds have the same keeper.

        A keeper is an object in the data, such as a sampler, whose state contains the position.
        """
        own_keeper, other_keeper = self._source.keeper, other._source.keeper
        if own_keeper is None or other_keeper is None:
            return False
        return own_keeper.wrapped is other_keeper.wrapped

    def restore_keeper_once(self, others: Iterable["DataFeed"]) -> None:
        """Makes only the feed that is iterated first restore the keeper that all these feeds share.

        A second restore would undo the progress of the feed that was iterated first.
        """
        self._source.snapshots.restore_keeper_once(each._source.snapshots for each in others)

    def _iterate_pass(self) -> Generator[Any, None, None]:
        """Yields the rest of a pass from ``position`` on. The first ``next`` begins the pass."""
        if not self.at_start and self.position.batches == self._pass_end.length:
            # All batches of this pass have been given already.
            self._source.end_pass(*self.position)
            self._advance_to_next_pass()
        if self.can_repeat:
            # Batches that an abandoned iteration had fetched are dropped here and loaded again. If
            # the data cannot be repeated, these batches are kept.
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
                # A batch is counted before it is given. So if the run is stopped while the engine
                # processes the batch, the position includes this batch.
                data_pass, given = self.position
                self.position = FeedPosition(data_pass, given + 1)
                self.is_last = is_last
                if is_last:
                    self._source.mark_last_batch()
                # The batch is not assigned to a variable, because the variable would keep the batch
                # alive until the next batch is requested, for example during a validation.
                yield to_device(ahead.popleft()) if moves else ahead.popleft()
        if not self.position.batches and not self._may_be_empty:
            raise ValueError(self._no_batches_message())
        self._iterator_ref = None
        self._advance_to_next_pass()

    @property
    def _draws_order_on_each_rank(self) -> bool:
        """Returns whether a pass begins for which each rank draws the order of samples by itself.

        If so, the ranks compare the states of their global generators, because ranks with different
        states would draw different orders.
        """
        accelerator = self._accelerator
        if accelerator is None or accelerator.num_processes == 1 or not self.at_start:
            return False
        # Accelerate divides only a DataLoader between the ranks. Any other iterable may give each
        # rank different batches on purpose, so different orders are not an error.
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
            f"`data` has {self._pass_end.length} batches a pass now, and had {length_before} when "
            f"this pass was begun: the pass continues after batch {self.position.batches}, and "
            "samples can come twice in it or not at all. Change data only between two passes",
            stacklevel=2,
        )

    def _no_batches_message(self) -> str:
        hint = "" if self.can_repeat else "; an iterator is used up after one pass"
        return (
            f"`data` gave no batch in pass {self.position.data_pass + 1}, it must give at least "
            f"one batch: check the {_type_name(self.loader)} and its data set{hint}"
        )


def _remedy_for(data: Any) -> str:
    """Returns the end of the error message for ``data`` that cannot be iterated: the remedy."""
    if isinstance(data, Dataset):
        return "DataLoader(dataset, batch_size=32), or another size"
    if isinstance(data, type):
        return f"an object of this class, {data.__name__}(…)"
    return "a DataLoader, a list of batches or a generator"


class Feeds:
    """The feeds of one engine, one for each loader or other iterable of batches.

    Data that is used again keeps its feed. So no loader is prepared twice, and the feed continues
    at the position where it was left. A ``DataLoader`` keeps its feed itself, as an attribute. A
    ``Feeds`` object keeps the newest feed (the feed that was used last), and the feeds of other
    iterables for which ``feed_for`` was called with ``remember=True``. Only the loader of the
    newest feed is on Accelerate's list of prepared loaders.

    Args:
        accelerator: prepares the loaders.
        even_batches: as in ``DataFeed``.
    """

    def __init__(self, accelerator: Accelerator, even_batches: bool = True) -> None:
        self._accelerator = accelerator
        self._even_batches = even_batches
        self._newest: tuple[Any, DataFeed | None] = (None, None)
        self._remembered: list[tuple[Any, DataFeed]] = []

    def feed_for(self, data: Any, *, remember: bool = False) -> DataFeed:
        """Returns the feed of ``data``; creates it on first use.

        Args:
            data: a loader, another iterable of batches, or a feed, which is returned unchanged.
            remember: whether this object keeps the feed as long as this object exists. If False,
                this object keeps the feed only while the feed is the newest. Without effect for a
                ``DataLoader``, which keeps its feed itself.
        """
        if isinstance(data, DataFeed):
            return data
        feed = self.existing_feed(data)
        if feed is None:
            feed = DataFeed(data, self._accelerator, even_batches=self._even_batches)
        if (
            remember
            and not isinstance(data, DataLoader)
            and all(data is not e for e, _ in self._remembered)
        ):
            self._remembered.append((data, feed))
        if feed is not self._newest[1]:
            self.register(data, feed)
        return feed

    def existing_feed(self, data: Any) -> DataFeed | None:
        """Returns the feed of ``data``; None if it was never created, or is no longer kept."""
        if isinstance(data, DataLoader):
            return _loader_feeds(data).get(self)
        found = (feed for each, feed in (self._newest, *self._remembered) if each is data)
        return next(found, None)

    def register(self, data: Any, feed: DataFeed) -> None:
        """Registers ``feed`` as the feed of ``data``, and as the newest feed."""
        _, former = self._newest
        self._newest = data, feed
        for loader in (data, feed.loader):
            if isinstance(loader, DataLoader):
                _loader_feeds(loader)[self] = feed
        feed.add_owner(self)
        # The feed must not stay an owner. Accelerate's list keeps the loader alive, and the loader
        # now keeps the feed alive, so the loader would stay on the list forever.
        feed.remove_owner(feed)
        if former is not None and former is not feed:
            former.remove_owner(self)


def load_between_passes(
    states: Iterable[tuple[DataFeed, Mapping[str, Any]]], others: Iterable[DataFeed] = ()
) -> None:
    """Moves feeds to positions that were saved together. Each position is the start of a pass.

    Several feeds may share data. If each feed restored the data only when the feed is first
    iterated, a later feed would undo the changes that an earlier feed has made to the shared data.
    So this function restores all states immediately. The only exception is a keeper (an object in
    the data, such as a sampler, whose state contains the position): the feed that is iterated first
    restores the keeper, for all feeds that share the keeper.

    Args:
        states: pairs of a feed and the saved state of this feed.
        others: further feeds, which have already been moved to their positions in the same save.
    """
    loaded = []
    for feed, state in states:
        snapshot, order = state.get("place"), state.get("order")
        if snapshot is not None:
            # A snapshot is restored when the feed is first iterated. So the states of objects and
            # generators are removed from the snapshot. `state["source"]` contains the same states,
            # and `load_state_dict` restores them immediately.
            snapshot = {**snapshot, "objects": {}, "generators": {}}
            # If the previous pass was left before its end (`is_cut`), an unbroken run iterates the
            # sampler from its start. The saved state would make it continue in the middle.
            if snapshot["is_cut"] and "sampler" in snapshot["of"].partition(" ")[0]:
                snapshot = None
        # The same holds for a recorded sampler, whose state is `order`.
        if order is not None and not (order["is_within"] or order["is_over"]):
            order = None
        feed.load_state_dict({**state, "place": snapshot, "order": order})
        loaded.append(feed)
    known = {id(feed): feed for feed in (*loaded, *others)}.values()
    for feed in known:
        feed.restore_keeper_once(
            each for each in known if each is not feed and each.shares_keeper_with(feed)
        )


class _LoaderFeeds(ExcludedFromSearch):
    """The feeds of one loader, one for each ``Feeds``. This object is an attribute of the loader.

    A feed refers to its loader. So a module-level ``WeakKeyDictionary`` from loaders to feeds would
    never free either of them. With an attribute, a loader and its feeds form a reference cycle,
    which the garbage collector frees.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = ref(loader)
        self.feeds: WeakKeyDictionary[Feeds, DataFeed] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # in a deep copy or a pickle of the loader the attribute is None


def _loader_feeds(loader: Any) -> "WeakKeyDictionary[Feeds, DataFeed]":
    # A shallow copy of a loader (`copy.copy`) still has the `_LoaderFeeds` of the original loader,
    # so the copy gets its own here.
    known = vars(loader).get("_ignite_hooks_feeds")
    if known is None or known.loader() is not loader:
        known = loader._ignite_hooks_feeds = _LoaderFeeds(loader)
    return known.feeds  # type: ignore[no-any-return]


def _type_name(loader: Any) -> str:
    """Returns the name of a loader's type as users know it, without Accelerate's subclasses."""
    return "DataLoader" if isinstance(loader, DataLoader) else type(loader).__name__
