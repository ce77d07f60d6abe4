"""The events of a training run, and the one drawing of the loop.

::

    STARTED                                                                            on_loop ┐
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
        ITERATION_COMPLETED
          OptimizerStep is its first handler. If the window is full (or the data ends):
            OPTIMIZER_STEP_STARTED    gradients are whole and unscaled       on_optimizer_step ┐
              GradientClipping, then the user's gradient handlers
            optimizer.step(), lr_scheduler.step()
            OPTIMIZER_STEP_COMPLETED  only if committed; gradients are still there to look at
            zero_grad                                                        on_optimizer_step ┘
            GRADIENTS_CLEARED         only if committed; what is due on a step schedule acts now
          … the user's own ITERATION_COMPLETED handlers, Ignite's metrics and loggers …
          Validation, if due          (VALIDATION_STARTED … VALIDATION_COMPLETED)
          SaveCheckpoint, if due, after every other handler     (CHECKPOINT_SAVED)     on_step ┘
      EPOCH_COMPLETED   … then Validation, SaveCheckpoint (once, if a step
                          schedule is due as well)                                    on_epoch ┘
    COMPLETED                                                                          on_loop ┘

Three words: an *iteration* is one batch through the engine; a *step* is one committed optimizer
step, the parameters changed; an *epoch* is Ignite's.

On the right are the channels of ``hooks/hooks.py``, scopes that open ┐ before any handler of that
moment and close ┘ after all of them.

The edges:

- A window closes when it is full, when a pass over the data ends, at ``epoch_length`` and at
  ``max_iters``. ``terminate()``, ``terminate_epoch()`` and failures drop the open window and zero
  its gradients.
- Validation runs when all handlers of the event have returned, whenever those were attached. At
  the last batch of an epoch, and at one that ``terminate_epoch()`` makes the last, it waits for
  EPOCH_COMPLETED.
- A stop (``max_steps``, ``terminate()``) on the last batch of an epoch lets the epoch complete
  first; TERMINATE comes after that.
- When a run is terminated ``on_epoch`` closes before TERMINATE's handlers. ``interrupt()`` leaves
  open what is open, until the run goes on.
- EXCEPTION_RAISED handlers are called once, with all channels open as they were; then these close,
  innermost first. If the handlers return, Ignite's idiom for "handled", the run ends there: no
  further epoch, no EPOCH_COMPLETED, no COMPLETED.
- After a stop or a failure the next ``run()`` goes on from the last step boundary: the batches of
  the broken window are given again.
"""

from ignite.engine import Engine
from ignite.engine import EventEnum

__all__ = ["TrainEvents"]


class TrainEvents(EventEnum):
    """What happens within an iteration and around a validation, in addition to ``Events``.

    Each works with Ignite's filters (``every=``, ``once=``, …). The number that a filter sees is in
    ``TrainEvents.event_to_attr``: the iteration for forward and backward, the number of committed
    steps around the optimizer step (at OPTIMIZER_STEP_STARTED those before it), and the number of
    the validation for the VALIDATION events.
    """

    MODEL_FORWARD_STARTED = "model_forward_started"
    MODEL_FORWARD_COMPLETED = "model_forward_completed"
    MODEL_BACKWARD_STARTED = "model_backward_started"
    MODEL_BACKWARD_COMPLETED = "model_backward_completed"
    OPTIMIZER_STEP_STARTED = "optimizer_step_started"
    OPTIMIZER_STEP_COMPLETED = "optimizer_step_completed"
    GRADIENTS_CLEARED = "gradients_cleared"
    VALIDATION_STARTED = "validation_started"
    VALIDATION_COMPLETED = "validation_completed"
    CHECKPOINT_SAVED = "checkpoint_saved"

    @classmethod
    def event_to_attr(cls) -> dict["TrainEvents", str]:
        """The attribute of ``engine.state`` that counts each event."""
        attributes = {"MODEL": "iteration", "VALIDATION": "validation"}
        return {event: attributes.get(event.name.split("_")[0], "optimizer_step") for event in cls}

    @classmethod
    def register(cls, engine: Engine) -> None:
        """Makes the events known to ``engine``; once is enough, and more does no harm."""
        if not engine.has_registered_events(cls.OPTIMIZER_STEP_STARTED):
            engine.register_events(*cls, event_to_attr=cls.event_to_attr())
