from ignite.engine import Engine

from ignite_hooks.core.stop_requests import StopWatch
from ignite_hooks.core.stop_requests import add_stop_watch
from ignite_hooks.core.stop_requests import stop_watches


def test_an_engine_has_the_watches_that_were_added():
    engine = Engine(lambda engine, batch: None)
    first, second = (StopWatch(lambda: False, None, lambda: None) for _ in range(2))
    undo = add_stop_watch(engine, first)
    add_stop_watch(engine, second)
    assert stop_watches(engine) == (first, second)
    undo()
    assert stop_watches(engine) == (second,)
    assert stop_watches(Engine(lambda engine, batch: None)) == ()
