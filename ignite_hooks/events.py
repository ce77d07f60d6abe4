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
          end of the process function                                                 on_batch ┘
          if the window is full (or the data ends):
            OPTIMIZER_STEP_STARTED    gradients are whole and unscaled       on_optimizer_step ┐
              the user's gradient handlers, then GradientClipping
            optimizer.step(), lr_scheduler.step()
            OPTIMIZER_STEP_COMPLETED  only if committed                      on_optimizer_step ┘
        ITERATION_COMPLETED           Ignite's metrics and loggers: parameters are updated, and
                                      gradients are still there to look at
          after all handlers of this event, if the window was full: gradients are zeroed
          then, if the step was committed:
            STEP_COMPLETED            loggers by step, callbacks on step schedules
            Validation, if due                                                   on_validation ┐
              VALIDATION_STARTED … VALIDATION_COMPLETED                          on_validation ┘
            SaveCheckpoint, if due    CHECKPOINT_SAVED
          end of the step                                                              on_step ┘
      EPOCH_COMPLETED                 first Ignite's metrics compute their values; then Validation,
                                      if due by step or by epoch; then all other handlers, which
                                      see the metrics and the results of the validation
        SaveCheckpoint, if due, after all handlers of this event
        end of the epoch                                                              on_epoch ┘
    COMPLETED                                                                          on_loop ┘

Three words:

- An *iteration* is one batch through the engine.
- A *step* is one committed optimizer step. An optimizer step is *committed* if it has changed the
  parameters. A step that the loss scaler skips is not committed, and is not counted.
- An *epoch* is Ignite's epoch.

The right column shows the channels of ``hooks/hooks.py``. A channel is a set of context managers
around a part of the loop. It opens (┐) before the first handler of the event in the same line. It
closes (┘) after the last handler of the event in that line, or where the drawing says "end of".

The edges:

- A *window* is the iterations whose gradients are accumulated for one optimizer step. It closes
  when it is full, when a pass over the data ends, at ``epoch_length`` and at ``max_iters``.
  ``terminate()``, ``terminate_epoch()`` and failures drop the open window and zero its gradients.
  A *step boundary* is a point where no window is open.
- An epoch is one pass over the data, however long that pass is, unless ``epoch_length`` is given.
  ``state.epoch_length`` shows the length of the present pass. Until this length is known, the
  attribute shows an estimate, the ``len()`` of the data, or None. The loop does not rely on it.
- Handlers may change the limits (``max_epochs``, ``max_iters``, ``max_steps``) and ``epoch_length``
  on the state. The loop reads these attributes after STARTED, after EPOCH_STARTED, after each
  iteration and after each epoch. A new value takes effect when the loop next reads the attribute. A
  run ends when a limit is reached or passed. Writing None removes a limit, and a run without any
  limit is an error. A new limit changes no step: a window that has closed stays closed, and a
  window that is open when the run ends is dropped without a step. Limits that a handler writes hold
  until the present run is over.
- After ``set_data`` the next batch comes from the new data. The present epoch then ends with the
  pass over the new data, or at ``epoch_length``. If data are assigned to ``state.dataloader``, the
  loop changes to them at the next DATALOADER_STOP_ITERATION, the next EPOCH_STARTED or the start of
  the next run, whichever comes first.
- All validations that a schedule makes due at one step boundary are run as one validation. At the
  last batch of an epoch, and at a batch that ``terminate_epoch()`` makes the last, the validation
  and the save are deferred to EPOCH_COMPLETED. A Validation that is attached to an event runs
  separately, in order of attachment among the handlers of that event.
- A scheduler moves when its ``step()`` is called. A scheduler that moves once per epoch moves after
  the validation and before the other handlers of EPOCH_COMPLETED. If such a scheduler takes a
  metric, it moves when all handlers of EPOCH_COMPLETED have returned, because a handler may write
  the metric.
- Requests (``terminate()``, ``terminate_epoch()``, ``interrupt()``) that are made between the
  beginning of the forward pass and the end of STEP_COMPLETED are obeyed when on_step has closed.
  The step, the validation and the save come first.
- If ``max_steps`` or ``terminate()`` ends the run at the last batch of an epoch, the epoch
  completes first, and TERMINATE is fired afterwards.
- When a run is terminated, ``on_epoch`` closes before the handlers of TERMINATE are called.
  ``interrupt()`` leaves open channels open, until the next ``run()`` continues the run.
- The handlers of EXCEPTION_RAISED are called once. The channels that were open at the failure are
  then still open, except on_validation. After the handlers the channels close, innermost first. If
  the handlers return, the failure is handled, as in Ignite, and the run ends: no further epoch, no
  EPOCH_COMPLETED, no COMPLETED.
- After a stop or a failure the next ``run()`` continues from the last step boundary: the batches of
  the window that was dropped are given again. If the failure came after a step was committed, the
  next run fires STARTED and then does the work that was left after this step: STEP_COMPLETED if
  none of its handlers was called, the callbacks on step schedules, the validation and the save.
  Ignite's running metrics continue from their values at the same step boundary.
- A signal that asks to stop breaks off a validation between two batches of an evaluator. The
  state is saved at once, without VALIDATION_COMPLETED and, at the end of an epoch, without the
  other handlers of EPOCH_COMPLETED. The next run, in this process or in another one, repeats the
  validation and then does everything that was to follow the validation.
- ``last_event_name`` in a handler is the event of that handler, even after the handler has fired
  other events.
"""

from difflib import get_close_matches
from enum import EnumMeta
from typing import Any

from ignite.engine import Engine
from ignite.engine import EventEnum
from ignite.engine import Events

__all__ = ["TrainEvents"]


class _EventsType(EnumMeta):
    """The metaclass of ``TrainEvents``. Its error for an unknown event suggests the right event."""

    def __getattr__(cls, name: str) -> Any:
        # This method exists for the remedy in its errors: Python's own error has only the name.
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

    All events work with Ignite's filters (``every=``, ``once=``, …). A filter of an event whose
    name begins with MODEL counts iterations. If the name begins with VALIDATION, the filter counts
    validations. A filter of any other event counts committed steps; at OPTIMIZER_STEP_STARTED the
    present step is not yet counted. ``TrainEvents.event_to_attr()`` maps each event to the name of
    the attribute of ``engine.state`` that counts for the event's filters.
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
        """Returns a mapping from each event to the name of its counter in ``engine.state``."""
        # The counter depends on the first word of the event's name. For any other first word it is
        # the number of committed steps.
        attributes = {"MODEL": "iteration", "VALIDATION": "validation"}
        return {event: attributes.get(event.name.split("_")[0], "optimizer_step") for event in cls}

    @classmethod
    def register(cls, engine: Engine) -> None:
        """Registers the events with ``engine``; does nothing if they are registered already."""
        # Ignite appends to its list of events without looking for duplicates.
        if not engine.has_registered_events(cls.OPTIMIZER_STEP_STARTED):
            engine.register_events(*cls, event_to_attr=cls.event_to_attr())
