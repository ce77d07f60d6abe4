"""The events of a training run, and the one drawing of the loop.

::

    STARTED                                                                            on_loop ┐
      Validation(at_start)
      EPOCH_STARTED                                                                   on_epoch ┐
        GET_BATCH_STARTED … GET_BATCH_COMPLETED
        ITERATION_STARTED                                                              on_step ┐
          process function:                                                           on_batch ┐
            MODEL_FORWARD_STARTED                                             on_model_forward ┐
              model and loss
            MODEL_FORWARD_COMPLETED                                           on_model_forward ┘
            MODEL_BACKWARD_STARTED                                           on_model_backward ┐
              backward
            MODEL_BACKWARD_COMPLETED                                         on_model_backward ┘
          … is left                                                                   on_batch ┘
          if the window is full (or the data ends):
            OPTIMIZER_STEP_STARTED    gradients are whole and unscaled       on_optimizer_step ┐
              the user's gradient handlers, then GradientClipping
            optimizer.step(), lr_scheduler.step()
            OPTIMIZER_STEP_COMPLETED  only if committed                      on_optimizer_step ┘
        ITERATION_COMPLETED           Ignite's metrics and loggers: parameters are new, and
                                      gradients are still there to look at
          when all its handlers have returned, if the window was full: gradients are zeroed, and
          if the step was committed:
            STEP_COMPLETED            loggers by step; what is due on a step schedule acts now
            Validation, if due                                                   on_validation ┐
              VALIDATION_STARTED … VALIDATION_COMPLETED                          on_validation ┘
            SaveCheckpoint, if due    CHECKPOINT_SAVED
          … is left                                                                    on_step ┘
      EPOCH_COMPLETED                 Ignite's metrics compute theirs; then Validation, if due by
                                      step or by epoch; then all other handlers, which see both
        SaveCheckpoint, if due, when all its handlers have returned
        … is left                                                                     on_epoch ┘
    COMPLETED                                                                          on_loop ┘

Three words: an *iteration* is one batch through the engine; a *step* is one committed optimizer
step, which has changed the parameters; an *epoch* is Ignite's.

On the right are the channels of ``hooks/hooks.py``, scopes that open ┐ before the first handler of
the event beside them and close ┘ after the last handler of theirs.

The edges:

- A *window* is the iterations whose gradients are accumulated for one optimizer step. It closes
  when it is full, when a pass over the data ends, at ``epoch_length`` and at ``max_iters``.
  ``terminate()``, ``terminate_epoch()`` and failures drop the open window and zero its gradients.
- An epoch is one pass over the data, however long that pass is, unless ``epoch_length`` is given.
  ``state.epoch_length`` shows the length of the present pass. Until this length is known, the
  attribute shows the length that the data promise, on which nothing relies, or None.
- Limits and ``epoch_length`` on the state are live. The loop reads them after STARTED, after
  EPOCH_STARTED, after each iteration and after each epoch; a value that a handler writes counts
  from the next reading. A limit ends the run when it is reached or passed, None lifts it, and a run
  without any limit is an error. No limit reopens or splits a step: a window that is open at the end
  of the run is dropped. Limits that a handler has written belong to that run.
- ``set_data`` takes the next batch from other data, and the present epoch ends with the pass over
  the new data, or at ``epoch_length``. Data that are assigned to ``state.dataloader`` are used from
  the next DATALOADER_STOP_ITERATION, EPOCH_STARTED or run on, whichever comes first.
- All validations that a schedule makes due at one step boundary are one validation. At the last
  batch of an epoch, and at a batch that ``terminate_epoch()`` makes the last, the validation and
  the save are deferred to EPOCH_COMPLETED. A Validation that is attached to an event runs
  separately, in order of attachment among the handlers of that event.
- A scheduler by epoch moves after the validation and before the other handlers of EPOCH_COMPLETED.
  A scheduler that takes a metric moves when all of these handlers have returned, because one of
  them may write the metric.
- Requests (``terminate()``, ``terminate_epoch()``, ``interrupt()``) that are made from the forward
  pass to STEP_COMPLETED are obeyed when on_step has been left: the step, the validation and the
  save come first.
- A stop (``max_steps``, ``terminate()``) on the last batch of an epoch lets the epoch complete
  first; TERMINATE comes after that.
- When a run is terminated ``on_epoch`` closes before TERMINATE's handlers. ``interrupt()`` leaves
  open channels open, until the next ``run()`` continues the run.
- EXCEPTION_RAISED handlers are called once, while all channels but on_validation are still open;
  then the channels close, innermost first. If the handlers return, Ignite's idiom for "handled",
  the run ends there: no further epoch, no EPOCH_COMPLETED, no COMPLETED.
- After a stop or a failure the next ``run()`` continues from the last step boundary: the batches of
  the window that was dropped are given again. After a failure that came once the step was
  committed, the rest of that step boundary comes first, after STARTED: STEP_COMPLETED if it had not
  begun, step schedules, the validation and the save. Ignite's running metrics continue as well.
- A signal that asks to stop breaks off a validation between two batches of an evaluator. The
  state is saved at once, without VALIDATION_COMPLETED and, at the end of an epoch, without the
  other handlers of EPOCH_COMPLETED. The next run, also in another process, makes up for the
  validation and for everything that was to follow it.
- ``last_event_name`` in a handler is that handler's event, also after the handler has fired others.
"""

from difflib import get_close_matches
from enum import EnumMeta
from typing import Any

from ignite.engine import Engine
from ignite.engine import EventEnum
from ignite.engine import Events

__all__ = ["TrainEvents"]


class _EventsType(EnumMeta):
    """The type of an enumeration of events that explains a missing one."""

    def __getattr__(cls, name: str) -> Any:
        # Python's own error is the bare name.
        if name in cls.__members__:  # Python 3.10 and 3.11 look members up by this method
            return cls.__members__[name]
        message = f"{cls.__name__} has no event {name}"
        if name.startswith("_"):
            raise AttributeError(message)
        if name in Events.__members__:
            raise AttributeError(f"{message}, Ignite has it: write Events.{name}")
        close = get_close_matches(name, cls.__members__, n=1) or [*cls.__members__]
        raise AttributeError(f"{message}: did you mean {' or '.join(close)}?")


class TrainEvents(EventEnum, metaclass=_EventsType):
    """Events within an iteration and around a validation, in addition to Ignite's ``Events``.

    Each works with Ignite's filters (``every=``, ``once=``, …). The count that a filter is given is
    named in ``TrainEvents.event_to_attr``: the iteration for the MODEL events, the number of
    committed steps for the OPTIMIZER_STEP events (at OPTIMIZER_STEP_STARTED the steps before this
    one), STEP_COMPLETED and CHECKPOINT_SAVED, and the number of the validation for the VALIDATION
    events.
    """

    MODEL_FORWARD_STARTED = "model_forward_started"
    MODEL_FORWARD_COMPLETED = "model_forward_completed"
    MODEL_BACKWARD_STARTED = "model_backward_started"
    MODEL_BACKWARD_COMPLETED = "model_backward_completed"
    OPTIMIZER_STEP_STARTED = "optimizer_step_started"
    OPTIMIZER_STEP_COMPLETED = "optimizer_step_completed"
    STEP_COMPLETED = "step_completed"
    VALIDATION_STARTED = "validation_started"
    VALIDATION_COMPLETED = "validation_completed"
    CHECKPOINT_SAVED = "checkpoint_saved"

    @classmethod
    def event_to_attr(cls) -> dict["TrainEvents", str]:
        """Returns the attribute of ``engine.state`` that counts each event."""
        # By the first word of the event's name; events of any other name count steps.
        attributes = {"MODEL": "iteration", "VALIDATION": "validation"}
        return {event: attributes.get(event.name.split("_")[0], "optimizer_step") for event in cls}

    @classmethod
    def register(cls, engine: Engine) -> None:
        """Registers the events with ``engine``; does nothing if they are registered already."""
        # Ignite appends to its list of events without looking for duplicates.
        if not engine.has_registered_events(cls.OPTIMIZER_STEP_STARTED):
            engine.register_events(*cls, event_to_attr=cls.event_to_attr())
