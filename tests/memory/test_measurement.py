import pytest

from ignite_hooks.memory.ledger import PeakLedger
from ignite_hooks.memory.measurement import Measurement
from tests.memory.test_ledger import Tank


@pytest.fixture
def tank():
    return Tank()


@pytest.fixture
def measurement(tank):
    return Measurement(PeakLedger(tank), every=1.0)


def test_it_has_the_peak_from_its_start_to_its_stop(tank, measurement):
    tank.spike(9)
    measurement.start()
    assert measurement.is_running
    tank.spike(5)
    measurement.stop()
    tank.spike(7)
    assert not measurement.is_running
    assert (measurement.result(), measurement.peak) == (5, 5)


def test_a_start_forgets_and_going_on_does_not(tank, measurement):
    measurement.start()
    tank.spike(5)
    measurement.stop()
    tank.spike(9)
    measurement.go_on()
    assert measurement.result() == 5
    measurement.stop()
    measurement.start()
    assert measurement.result() == 0
    measurement.stop()


def test_a_reset_forgets_running_or_not(tank, measurement):
    measurement.start()
    tank.spike(5)
    measurement.reset()
    tank.spike(3)
    measurement.stop()
    assert measurement.result() == 3
    measurement.reset()
    assert measurement.result() == 0


def test_what_is_held_stays_open_from_measurement_to_measurement(tank, measurement):
    with measurement.held():
        for _ in range(3):
            measurement.start()
            measurement.stop()
        assert (tank.opened, tank.closed) == (1, 0)
    assert tank.closed == 1
    measurement.start()
    measurement.stop()
    assert tank.opened == 2


def test_one_that_is_abandoned_ends_and_one_that_is_not_running_is_left_alone(tank, measurement):
    measurement.abandon()
    measurement.start()
    measurement.abandon()
    assert not measurement.is_running
    assert tank.descriptor is None
