from ignite.engine import Engine

from ignite_hooks.core.stop_requests import StopWatch
from ignite_hooks.core.stop_requests import add_stop_watch
from ignite_hooks.core.stop_requests import stop_watches


def test_sources_of_requests_are_added_and_removed():
    engine = Engine(lambda engine, batch: None)
    first, second = (StopWatch(lambda: False, None, lambda: None) for _ in range(2))
    remove = add_stop_watch(engine, first)
    add_stop_watch(engine, second)
    assert stop_watches(engine) == (first, second)
    remove()
    assert stop_watches(engine) == (second,)
    assert stop_watches(Engine(lambda engine, batch: None)) == ()
