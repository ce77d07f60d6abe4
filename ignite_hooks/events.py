"""The events of a training run, and the drawing of the loop that fires them.

::

    STARTED                                                                            on_loop ┐
      Validation(at_start)
      EPOCH_STARTED                   for each epoch                                  on_epoch ┐
        GET_BATCH_STARTED … GET_BATCH_COMPLETED   for each batch, from here to the end of the step
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

Three words have a fixed meaning:

- An *iteration* is the processing of one batch by the engine.
- A *step* is one committed optimizer step. An optimizer step is *committed* if it has changed the
  parameters. An optimizer step that the loss scaler skips is not committed, and is not counted.
- An *epoch* is Ignite's epoch.

The right column of the drawing shows the channels (see ``hooks/hooks.py``). A channel is a set of
context managers around a part of the loop. It opens (┐) before the first handler of the event in
the same line. It closes (┘) after the last handler of the event in that line, or where the drawing
says "end of".

Details and special cases:

- A *window* is the iterations whose gradients are accumulated for one optimizer step. A window
  closes when it is full, when a pass over the data ends, at ``epoch_length`` and at ``max_iters``.
  ``terminate()``, ``terminate_epoch()`` and failures drop the open window and zero its gradients.
  A *step boundary* is a point where no window is open.
- Without ``epoch_length``, an epoch is one pass over the data. The lengths of passes may differ.
  ``state.epoch_length`` shows the length of the present pass. Until this length is known, the
  attribute shows the ``len()`` of the data as an estimate, or None. The loop does not rely on the
  estimate.
- Handlers may change the limits (``max_epochs``, ``max_iters``, ``max_steps``) and ``epoch_length``
  on the state. The loop reads these attributes after STARTED, after EPOCH_STARTED, after each
  iteration and after each epoch. A new value takes effect when the loop next reads the attribute. A
  run ends when a limit is reached or passed. Writing None removes a limit, and a run without any
  limit is an error. If a window is open when a new limit ends the run, the window is dropped
  without a step. Limits that a handler writes hold until the present run is over.
- After ``set_data`` the next batch comes from the new data. The present epoch then ends with the
  pass over the new data, or at ``epoch_length``. If data are assigned to ``state.dataloader``, the
  loop changes to them at the next DATALOADER_STOP_ITERATION, the next EPOCH_STARTED or the start of
  the next run, whichever comes first.
- Several Validations may be due by schedule at one step boundary. They run together, between one
  VALIDATION_STARTED and one VALIDATION_COMPLETED. A Validation that is attached to an event runs
  separately, in order of attachment among the handlers of that event.
- At the last batch of an epoch, the validation and the save are deferred to EPOCH_COMPLETED. The
  last batch may also be a batch at which ``terminate_epoch()`` ends the epoch.
- A learning rate scheduler *moves* when its ``step()`` is called. A scheduler that moves once per
  epoch moves after the validation and before the other handlers of EPOCH_COMPLETED. If such a
  scheduler takes a metric, it moves when all handlers of EPOCH_COMPLETED have returned, because a
  handler may write the metric.
- A request (``terminate()``, ``terminate_epoch()`` or ``interrupt()``) may come between the
  beginning of the forward pass and the end of STEP_COMPLETED. The loop obeys such a request when
  on_step has closed, after the step, the validation and the save.
- If ``max_steps`` or ``terminate()`` ends the run at the last batch of an epoch, the epoch
  completes first, and TERMINATE is fired afterwards.
- When a run is terminated, ``on_epoch`` closes before the handlers of TERMINATE are called. When a
  run is interrupted with ``interrupt()``, the channels stay open, until the next ``run()``
  continues the run.
- The handlers of EXCEPTION_RAISED are called once. During these calls, the channels that were open
  at the failure are still open, except on_validation. After the calls the channels close, innermost
  first. If the handlers return, the failure is handled, as in Ignite, and the run ends: no further
  epoch, no EPOCH_COMPLETED, no COMPLETED.
- After a stop or a failure the next ``run()`` continues from the last step boundary: the batches of
  the window that was dropped are given again. Ignite's running metrics continue from their values
  at the same step boundary.
- The work after a committed step is STEP_COMPLETED, the callbacks on step schedules, the validation
  and the save. If a failure comes before this work is complete, the next run fires STARTED, and
  then does the rest of the work. It fires STEP_COMPLETED only if no handler of STEP_COMPLETED was
  called before the failure.
- A signal that asks to stop breaks off a validation between two batches of an evaluator. The state
  is saved at once, and VALIDATION_COMPLETED is not fired. At the end of an epoch, the handlers of
  EPOCH_COMPLETED that follow the validation are not called either. The next run, in this process or
  in another one, repeats the validation and then does everything that was to follow it.
- In a handler, ``last_event_name`` is the event of this handler, even after the handler has fired
  other events.
"""

from difflib import get_close_matches
from enum import EnumMeta
from typing import TYPE_CHECKING
from typing import Any

from ignite.engine import Engine
from ignite.engine import EventEnum
from ignite.engine import Events

__all__ = ["TrainEvents"]


class _EventsType(EnumMeta):
    """The metaclass of ``TrainEvents``. The error for an unknown event suggests a known event."""

    if not TYPE_CHECKING:  # with this method, type checkers would admit any name

        def __getattr__(cls, name: str) -> Any:
            if name in cls.__members__:  # Python 3.10 and 3.11 call this method for members, too
                return cls.__members__[name]
            message = f"{cls.__name__} has no event {name}"
            if name.startswith("_"):
                raise AttributeError(message)
            if name in Events.__members__:
                raise AttributeError(f"{message}, Ignite has it: write Events.{name}")
            close = get_close_matches(name, cls.__members__, n=1) or [*cls.__members__]
            raise AttributeError(f"{message}: did you mean {' or '.join(close)}?")


class TrainEvents(EventEnum, metaclass=_EventsType):
    """Events of steps, validations and saves, in addition to Ignite's ``Events``.

    All events work with Ignite's filters (``every=``, ``once=``, …). What a filter counts depends
    on the name of the event:

    - ``MODEL_…``: iterations.
    - ``VALIDATION_…``: validations.
    - All other events: committed steps, which are the optimizer steps that have changed the
      parameters. At OPTIMIZER_STEP_STARTED the present step is not yet counted.

    The counters are attributes of ``engine.state``. ``TrainEvents.event_to_attr()`` maps each event
    to the name of its counter.
    """

    MODEL_FORWARD_STARTED = "model_forward_started"
    """Fired before the model and the loss function are called."""
    MODEL_FORWARD_COMPLETED = "model_forward_completed"
    """Fired when the loss of a batch is computed."""
    MODEL_BACKWARD_STARTED = "model_backward_started"
    """Fired before the backward pass of a batch."""
    MODEL_BACKWARD_COMPLETED = "model_backward_completed"
    """Fired after the backward pass of a batch."""
    OPTIMIZER_STEP_STARTED = "optimizer_step_started"
    """Fired when the gradients of a window are complete, before they are clipped."""
    OPTIMIZER_STEP_COMPLETED = "optimizer_step_completed"
    """Fired after the optimizer and the scheduler have stepped, if the step is committed."""
    STEP_COMPLETED = "step_completed"
    """Fired after a committed step; on a trainer, when the gradients are zeroed."""
    VALIDATION_STARTED = "validation_started"
    """Fired before a validation."""
    VALIDATION_COMPLETED = "validation_completed"
    """Fired when the results of a validation are in ``state.metrics``."""
    CHECKPOINT_SAVED = "checkpoint_saved"
    """Fired when a checkpoint is complete."""

    @classmethod
    def event_to_attr(cls) -> dict["TrainEvents", str]:
        """Returns a mapping from each event to the name of its counter in ``engine.state``."""
        # The counter depends on the first word of the event's name. For a first word that is not in
        # this dict, the counter is the number of committed steps.
        attributes = {"MODEL": "iteration", "VALIDATION": "validation"}
        return {event: attributes.get(event.name.split("_")[0], "optimizer_step") for event in cls}

    @classmethod
    def register(cls, engine: Engine) -> None:
        """Registers the events with ``engine``; does nothing if they are registered already."""
        # Ignite appends to its list of events without looking for duplicates.
        if not engine.has_registered_events(cls.OPTIMIZER_STEP_STARTED):
            engine.register_events(*cls, event_to_attr=cls.event_to_attr())
