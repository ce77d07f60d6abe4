from ignite.engine import Engine

from ignite_hooks.core.stop_requests import StopMonitor
from ignite_hooks.core.stop_requests import add_stop_monitor
from ignite_hooks.core.stop_requests import stop_monitors


def test_sources_of_requests_are_added_and_removed():
    engine = Engine(lambda engine, batch: None)
    first, second = (StopMonitor(lambda: False, None, lambda: None) for _ in range(2))
    remove = add_stop_monitor(engine, first)
    add_stop_monitor(engine, second)
    assert stop_monitors(engine) == (first, second)
    remove()
    assert stop_monitors(engine) == (second,)
    assert stop_monitors(Engine(lambda engine, batch: None)) == ()
