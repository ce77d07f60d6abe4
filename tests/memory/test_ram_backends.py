import os

import pytest

from ignite_hooks import MaxRAM
from ignite_hooks.memory import ram_backends
from ignite_hooks.memory.kernel import _reset_trial
from ignite_hooks.memory.ram_backends import backend_in_use
from ignite_hooks.memory.ram_backends import ram_measurements
from tests.memory.spikes import forked
from tests.memory.spikes import of_marks

REASON = "PermissionError: [Errno 13] Permission denied: '/proc/self/clear_refs'"


@pytest.fixture(autouse=True)
def _asked_anew():
    _reset_trial.has_succeeded = False
    yield
    _reset_trial.has_succeeded = False
    assert of_marks() == []


@pytest.fixture
def refused(monkeypatch):
    def refuse(path, flags):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("backend", ["auto", "kernel"])
def test_kernel_backend_is_used_here(backend):
    assert backend_in_use(backend) == "kernel"
    assert MaxRAM(backend=backend).used_backend == "kernel"


def test_the_sampler_can_be_chosen():
    assert backend_in_use("sampler") == "sampler"
    assert MaxRAM(backend="sampler").used_backend == "sampler"


def test_the_sampler_never_asks_the_kernel(monkeypatch):
    monkeypatch.setattr(os, "open", lambda *arguments: pytest.fail("asked"))
    ram = MaxRAM(backend="sampler", every=3600, include_children=True)
    with ram:
        assert ram.result() > 0
    assert ram.used_backend == "sampler"
    assert not _reset_trial.has_succeeded


@pytest.mark.usefixtures("refused")
def test_auto_is_the_sampler_if_the_kernel_refuses():
    ram = MaxRAM(every=3600)
    assert ram.used_backend == "sampler"
    with ram:
        pass
    assert ram.result() > 0


@pytest.mark.usefixtures("refused")
def test_refused_kernel_backend_is_error_with_reason_and_remedy():
    message = (
        '`backend` must be one that works here, got "kernel", but the high-water mark of this '
        f'process cannot be reset ({REASON}): backend="auto" uses the sampler in this case'
    )
    with pytest.raises(ValueError, match="must be one that works here") as raised:
        backend_in_use("kernel")
    assert str(raised.value) == message
    with pytest.raises(ValueError, match="must be one that works here") as raised:
        MaxRAM(backend="kernel")
    assert message in str(raised.value)


def test_auto_is_the_sampler_if_a_reset_has_no_effect(monkeypatch):
    monkeypatch.setattr(os, "write", lambda descriptor, text: len(text))
    assert MaxRAM().used_backend == "sampler"
    with pytest.raises(ValueError, match=r"does not lower VmHWM\): backend=.auto. uses"):
        MaxRAM(backend="kernel")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_auto_is_the_sampler_after_changing_the_user():
    def in_child():
        os.setuid(65534)
        with MaxRAM(every=3600) as ram:
            pass
        try:
            MaxRAM(backend="kernel")
        except ValueError as error:
            return ram.used_backend, ram.result(), str(error)

    backend, result, message = forked(in_child)
    assert backend == "sampler"
    assert result > 0
    assert "(PermissionError: [Errno 13] Permission denied: '/proc/self/clear_refs')" in message


@pytest.mark.parametrize("backend", ["kernel", "sampler"])
@pytest.mark.parametrize("include_children", [False, True])
def test_each_measurement_uses_the_process_wide_shared_mark(backend, include_children):
    parts = ram_measurements(backend, 0.5, include_children)
    owners = [ram_backends._PROCESS_MARKS[backend], ram_backends._CHILDREN_MARKS[backend]]
    assert [part.shared_mark for part in parts] == owners[: 1 + include_children]
    assert [part.every for part in parts] == [0.5] * len(parts)
    others = ram_measurements(backend, 0.5, include_children)
    assert not set(parts) & set(others)


def test_only_the_kernels_mark_of_the_process_needs_no_samples():
    sampled = {
        (whose, backend): shared_mark._is_sampled
        for whose, shared_marks in (
            ("own", ram_backends._PROCESS_MARKS),
            ("children", ram_backends._CHILDREN_MARKS),
        )
        for backend, shared_mark in shared_marks.items()
    }
    assert [name for name, is_sampled in sampled.items() if not is_sampled] == [("own", "kernel")]
