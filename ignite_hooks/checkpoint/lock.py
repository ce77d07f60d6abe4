"""The lock of a directory of checkpoints, which allows one run at a time to write there.

The lock is a file in the directory, ``.ignite_hooks.lock``. The file is never removed. The owner of
the lock is the trainer that took it, and also the process of this trainer. Another trainer of the
same process may not write. Two mechanisms decide which process is the owner:

- Among the processes of one machine, ``flock`` on the file decides. The kernel releases the
  ``flock`` of a process when the process ends, also after a crash.
- Between machines, a record in the file decides: on a network file system ``flock`` may be missing,
  or may work only among the processes of one machine. The record names the owner and has a
  heartbeat, a counter that a thread of the owner increments every ten seconds. If the record of an
  owner on another machine does not change for a minute, the owner counts as dead. The process that
  wants the lock measures this minute with its own clock; clocks of two machines are never compared.

Two processes count as processes of one machine only if the host name and the boot id of the kernel
are both the same. Copies of a virtual machine have the same host name, but different boot ids.
Containers on one kernel have the same boot id, but different host names: they count as different
machines, and the record decides between them.
"""

import errno
import gc
import json
import logging
import os
import platform
import threading
import uuid
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from datetime import datetime
from datetime import timezone
from enum import Enum
from pathlib import Path
from time import monotonic
from time import sleep
from typing import Literal
from typing import NoReturn

import psutil

from ignite_hooks.checkpoint.durable import make_folder
from ignite_hooks.checkpoint.ranks import Ranks
from ignite_hooks.core.warn_once import warn_once

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK_NAME", "DirectoryLock", "try_flock"]

logger = logging.getLogger(__name__)

LOCK_NAME = ".ignite_hooks.lock"
_HEARTBEAT_SECONDS = 10.0
_STALE_SECONDS = 60.0
_POLL_SECONDS = 0.5
# Without a reliable flock, two processes may write their records at the same time. So each process
# waits for this time after its write, and then reads the file. Both find the same record, the one
# that was written last.
_SETTLE_SECONDS = 1.0
_RECORD_ATTEMPTS, _RECORD_RETRY_SECONDS = 20, 0.05  # a new owner has 1 s to write its record
# Every record is padded to this length and written in one call. So a process never reads half of a
# record, or a record that ends with the rest of a longer one.
_RECORD_LENGTH_BYTES = 512
_FLOCK_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True)
class Owner:
    """The record of the process that owns the lock of a directory, or owned it last.

    Attributes:
        token: a unique id, which is new each time a process takes the lock.
        host: the host name of the owner's machine.
        boot: the boot id of the machine's kernel; empty if the kernel has none.
        namespace: the namespace in which the process id is valid. A container usually has its own
            namespace of process ids.
        pid: the process id.
        started: the time at which the process started, in seconds. The time distinguishes the owner
            from a later process with the same process id.
        since: the time at which the owner took the lock, for messages.
        beat: the heartbeat, a counter that increases while the process is alive.
        is_released: whether the owner has released the lock.
    """

    token: str
    host: str
    boot: str
    namespace: str
    pid: int
    started: float
    since: str
    beat: int = 0
    is_released: bool = False

    @classmethod
    def of_this_process(cls) -> "Owner":
        """Returns a new record of this process, with a new token."""
        return cls(
            token=uuid.uuid4().hex,
            host=platform.node(),
            boot=_boot_id(),
            namespace=_pid_namespace(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            since=datetime.now(timezone.utc).isoformat(sep=" ", timespec="seconds"),
        )

    @classmethod
    def loads(cls, content: bytes) -> "Owner | None":
        """Returns the record in the content of a lock file; None if the record is invalid."""
        try:
            return cls(**json.loads(content))
        except (TypeError, ValueError):
            return None

    def dumps(self) -> bytes:
        """Returns the record as the content of the lock file, padded to a fixed length."""
        return json.dumps(asdict(self)).encode().ljust(_RECORD_LENGTH_BYTES)

    @property
    def is_of_this_machine(self) -> bool:
        """Returns whether the owner runs on this machine, where ``flock`` is reliable."""
        return (self.host, self.boot) == (platform.node(), _boot_id())

    @property
    def is_alive(self) -> bool | None:
        """Returns whether the owner's process is alive.

        Returns None if this process cannot see the owner's process. Use this property only for an
        owner on this machine (``is_of_this_machine``).
        """
        if self.namespace != _pid_namespace():  # the owner runs in another container
            return None
        try:
            # If the start time differs, the process id now belongs to another process.
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) < 1)
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (owner since {self.since})"


class DirectoryLock:
    """The exclusive right to write to a directory, held by rank 0 for all ranks.

    The lock is released by ``release``, or when this object is garbage collected. A forked process
    does not inherit the lock.

    Args:
        directory: the directory of checkpoints.
        ranks: the processes of the run.
        on_busy: the reaction if another run holds the lock: "error" or "wait".
        wait_seconds: the longest time to wait; None for no limit.

    Attributes:
        has_waited: whether the last call of ``acquire`` had to wait. Always False on ranks above 0,
            because only rank 0 tries to take the lock.
    """

    def __init__(
        self,
        directory: Path,
        ranks: Ranks,
        on_busy: Literal["error", "wait"] = "error",
        wait_seconds: float | None = None,
    ) -> None:
        self.has_waited = False
        self._directory = directory
        self._ranks = ranks
        self._waits = on_busy == "wait"
        self._wait_seconds = wait_seconds
        self._file: _LockFile | None = None
        self._finalizer: weakref.finalize[[], DirectoryLock] | None = None
        self._pid: int | None = None  # the process that took the lock

    @property
    def is_held(self) -> bool:
        """Returns whether this run holds the lock. False in a forked process."""
        return self._pid == os.getpid()

    @property
    def is_held_by_parent(self) -> bool:
        """Returns whether this process was forked from the process that took the lock."""
        return self._pid not in (None, os.getpid())

    def acquire(self, is_stopped: Callable[[], bool] = lambda: False) -> bool:
        """Takes the lock, unless this run holds it already. All ranks call this method.

        Args:
            is_stopped: a function that returns True to stop the wait. One rank on which the
                function returns True is enough.

        Returns:
            True if this run holds the lock; False if the wait was stopped.

        Raises:
            RuntimeError: another run holds the lock, and this run does not wait or has waited for
                ``wait_seconds``. Or this process was forked from the owner.
        """
        self._raise_in_child()
        if self.is_held:
            return True
        self.has_waited = False
        started = monotonic()
        try:
            while not self._ranks.call_on_rank_0(lambda: self._try_acquire(started)):
                if any(self._ranks.any_of(is_stopped())):
                    return False
                sleep(_POLL_SECONDS)
            self._pid = os.getpid()
        finally:
            if not self.is_held:  # the wait was stopped, or an error or a signal ended it
                self.release()
        return True

    def check(self) -> None:
        """Checks that this process still holds the lock.

        Call this method before files are written or removed. The lock file may have been removed,
        for example with its directory. In this case the method takes the lock again, unless another
        run has taken it.

        Raises:
            RuntimeError: another run holds the lock, or this process was forked from the owner.
        """
        self._raise_in_child()
        file = self._file
        if file is None:
            raise RuntimeError(f"{self._directory} must not be written to without its lock")
        if file.is_owned:
            return
        if not file.path.exists():
            file.close()
            if self._try_acquire(monotonic()):
                return
        owner = Owner.loads(_read(file.path))
        raise RuntimeError(
            f"{self._directory} is no longer this run's: {_owner_text(owner)} has taken the lock. "
            f"Either this process wrote no heartbeat for {_STALE_SECONDS:.0f} s, or {LOCK_NAME} "
            "was removed. This run writes nothing more there, because two runs would remove each "
            "other's checkpoints: give this run another directory, or stop one of the two runs"
        )

    def release(self) -> None:
        """Releases the lock. A forked process releases nothing.

        This is not a collective call, because a run may fail on one rank alone. If a signal
        interrupts a call, the call can be repeated.
        """
        if self._file is not None:
            self._file.close()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._file = self._finalizer = self._pid = None

    def _try_acquire(self, started: float) -> bool:
        """Takes the lock if it is free, and returns whether the lock was taken.

        Args:
            started: the time at which the wait began, as ``monotonic`` returned it.

        Raises:
            RuntimeError: another trainer holds the lock, and this run cannot wait: ``on_busy`` is
                "error", or the other trainer is in this thread, so that the wait would never end.
                Or ``wait_seconds`` have passed.
        """
        if self._file is None:
            self._file = _LockFile(self._directory / LOCK_NAME)
            self._finalizer = weakref.finalize(self, self._file.close)
        file = self._file
        availability = file.check_availability()
        if file.is_owner_in_this_process and not self.has_waited:
            # The owner may be an interrupted trainer that nobody uses any more, and that only a
            # reference cycle keeps alive. When the trainer is collected, its lock is released.
            gc.collect()
            availability = file.check_availability()
        if availability is _Availability.FREE:
            file.claim()
            return True
        can_wait = self._waits and not file.is_owner_in_this_thread
        if availability is _Availability.BUSY and not can_wait:
            self._raise_busy(file)
        waited = monotonic() - started
        if self._waits and self._wait_seconds is not None and waited >= self._wait_seconds:
            self._raise_busy(file, waited)
        if not self.has_waited:
            self.has_waited = True
            self._warn_of_wait(file.owner, availability)
        return False

    def _raise_in_child(self) -> None:
        if self.is_held_by_parent:
            raise RuntimeError(
                f"a checkpoint must be saved by the process that began the run, {self._pid}. This "
                f"is process {os.getpid()}, forked from process {self._pid}: it writes and removes "
                f"nothing in {self._directory}. End a forked process with os._exit(), so that it "
                "does not go on with the run"
            )

    def _raise_busy(self, file: "_LockFile", waited: float | None = None) -> NoReturn:
        """Raises the error for a lock that another run holds. ``waited`` is in seconds."""
        owner = _owner_text(file.owner)
        # The error message below says "DIRECTORY, which {case}: ..., {remedy}".
        case = f"is written to by {owner}"
        remedy = 'stop the other run, or wait for its end with SaveCheckpoint(..., on_busy="wait")'
        if file.is_owner_in_this_process:
            case = (
                "is written to by another trainer that is running or interrupted in this process, "
                f"{owner}"
            )
            remedy = (
                "or end the other run first (if it is interrupted, call terminate() and then run() "
                "on its trainer)"
            )
        elif waited is not None:
            case = f"is still written to by {owner} after {waited:.0f} s of waiting"
            remedy = "stop the other run, or give a longer `wait_seconds`"
        raise RuntimeError(
            f"`directory` must be written to by one run at a time, got {self._directory}, which "
            f"{case}: give this run another directory, {remedy}"
        )

    def _warn_of_wait(self, owner: "Owner | None", availability: "_Availability") -> None:
        """Logs which process this run waits for, and how long."""
        limit = self._wait_seconds
        duration = "without a time limit" if limit is None else f"for up to {limit:g} s"
        # The log says "DIRECTORY {text}".
        if availability is _Availability.BUSY:
            text = (
                f"is written to by {_owner_text(owner)}: this run waits {duration} until the other "
                'run ends (on_busy="wait")'
            )
        else:
            text = (
                f"was not released by {_owner_text(owner)}. This process cannot see whether the "
                f"owner is alive, so it watches the owner's heartbeat for {_STALE_SECONDS:.0f} s"
            )
        logger.warning("%s %s", self._directory, text)


class _Availability(Enum):
    """The availability of a lock: whether the lock can be taken.

    Attributes:
        FREE: the lock can be taken.
        BUSY: another process or trainer holds the lock.
        UNKNOWN: it is not known yet whether the owner in the record is alive. This process cannot
            see the owner's process, for example because the owner runs in another container or on
            another machine.
    """

    FREE = "free"
    BUSY = "busy"
    UNKNOWN = "unknown"


class _LockFile:
    """Takes, holds and releases the lock for one trainer, by means of the lock file.

    Attributes:
        path: the path of the file.
        owner: the owner that the record named when it was last read; None if it named no owner.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner: Owner | None = None
        # The record that this trainer has written as the owner; None while it is not the owner.
        self._own_record: Owner | None = None
        self._thread_id = threading.get_ident()
        self._descriptor: int | None = None
        # True if this process has the flock, False if it does not have the flock (yet), None if the
        # file system has no flock.
        self._has_flock: bool | None = False
        # For an owner whose process this process cannot see, for example on another machine: the
        # latest record of that owner, and the time at which this process first read this record.
        self._watched_content: bytes | None = None
        self._watched_since = 0.0
        self._stop = threading.Event()
        self._heartbeat_thread: threading.Thread | None = None

    @property
    def is_owned(self) -> bool:
        """Returns whether this trainer still owns the lock.

        Returns False if the lock file was removed or replaced, or if its record names another
        owner. If the record cannot be read, the trainer still owns the lock.
        """
        if self._own_record is None or not self._is_in_place:
            return False
        found = Owner.loads(_read(self.path))
        return found is None or found.token == self._own_record.token

    @property
    def is_owner_in_this_process(self) -> bool:
        """Returns whether the owner is another trainer of this process."""
        return self._lock_of_owner is not None

    @property
    def is_owner_in_this_thread(self) -> bool:
        """Returns whether the owner runs in this thread, so that a wait for it would never end."""
        owner = self._lock_of_owner
        return owner is not None and owner._thread_id == threading.get_ident()

    @property
    def _lock_of_owner(self) -> "_LockFile | None":
        """The owner's ``_LockFile``; None if the owner is not another trainer of this process."""
        token = None if self.owner is None else self.owner.token
        return next(
            (f for f in _open_files if f._own_record is not None and f._own_record.token == token),
            None,
        )

    def check_availability(self) -> _Availability:
        """Tries to get the ``flock``, reads the record, and returns whether the lock is free."""
        self._open_and_lock()
        content, owner = self._read_record()
        if self._has_flock is False:
            # Another process or trainer holds the flock, and is the owner. Until this owner has
            # written its record, the file is empty or has the record of the previous owner. So the
            # record is read again until it names an owner that has not released the lock.
            for _ in range(_RECORD_ATTEMPTS):
                if owner is None or owner.is_released:
                    sleep(_RECORD_RETRY_SECONDS)
                    content, owner = self._read_record()
            if owner is not None and owner.is_released:
                self.owner = None  # the record still names the previous owner
            return _Availability.BUSY
        if not content or (owner is not None and owner.is_released):
            return _Availability.FREE
        if owner is not None and owner.is_of_this_machine:
            # A living owner holds the flock. So if this process has got the flock, the owner in the
            # record is dead. If there is no flock, the process id shows whether the owner is alive.
            is_alive = False if self._has_flock else owner.is_alive
            if is_alive is not None:
                return _Availability.BUSY if is_alive else _Availability.FREE
        # This process cannot see the owner's process, so it watches the record. Each heartbeat
        # changes the record, which shows that the owner is alive.
        if content != self._watched_content:
            is_first, self._watched_content = self._watched_content is None, content
            self._watched_since = monotonic()
            return _Availability.UNKNOWN if is_first else _Availability.BUSY
        is_stale = monotonic() - self._watched_since >= _STALE_SECONDS
        return _Availability.FREE if is_stale else _Availability.UNKNOWN

    def _read_record(self) -> "tuple[bytes, Owner | None]":
        """Reads the record, and sets ``self.owner``. Returns the record's bytes and its owner."""
        content = _read(self.path).strip(b"\0 ")
        self.owner = Owner.loads(content)
        return content, self.owner

    def claim(self) -> None:
        """Makes this process the owner, and starts the heartbeat.

        Raises:
            RuntimeError: another process took the lock at the same time. This can happen only if
                ``flock`` is missing, or works only among the processes of one machine.
        """
        self._own_record = Owner.of_this_process()
        self._write(self._own_record)
        if self._has_flock is None or self._watched_content is not None:
            # There is no flock, or the flock may not exclude processes on other machines. So
            # another process may have written its record at the same time (see `_SETTLE_SECONDS`).
            sleep(_SETTLE_SECONDS)
            if not self.is_owned:
                owner = Owner.loads(_read(self.path))
                raise RuntimeError(
                    f"`directory` must be written to by one run at a time, got {self.path.parent}, "
                    f"and {_owner_text(owner)} took its lock at the same time: start this run "
                    "again, or give it another directory"
                )
        name = "ignite_hooks.checkpoint.lock"
        self._heartbeat_thread = threading.Thread(
            target=self._write_heartbeats, name=name, daemon=True
        )
        self._heartbeat_thread.start()

    def close(self) -> None:
        """Releases the lock, if this trainer owns it, and closes the file.

        If a signal interrupts a call, the call can be repeated.
        """
        descriptor, thread = self._descriptor, self._heartbeat_thread
        if descriptor is None:
            return
        self._stop.set()
        # The garbage collector may call this method in any thread. In the heartbeat thread `join`
        # would raise an error, because a thread cannot join itself.
        if thread is not None and thread.ident not in (None, threading.get_ident()):
            thread.join()
        # The write may fail, for example on a full disk. os.close() releases the flock in any case.
        with suppress(OSError):
            if self._own_record is not None and self.is_owned:
                self._write(replace(self._own_record, is_released=True))
        self._own_record, self._descriptor = None, None
        os.close(descriptor)
        _open_files[:] = [each for each in _open_files if each is not self]
        self._stop.clear()

    def close_in_child(self) -> None:
        """Closes the file in a forked process, such as a worker of a loader.

        A forked process inherits the open file and, with it, the ``flock``. A file that stayed open
        in the forked process would keep the ``flock`` after the owner has ended.
        """
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._own_record, self._descriptor = None, None

    def _open_and_lock(self) -> None:
        """Opens the file and tries to get its ``flock``.

        If the file was removed or replaced after it was opened, both steps are repeated.
        """
        while True:
            if self._descriptor is None:
                self._has_flock = False
                self._descriptor = self._open_lock_file()
            if self._has_flock is False:
                self._has_flock = try_flock(self._descriptor)
            if self._has_flock is None:
                warn_once(
                    f"the file system of {self.path.parent} has no flock: two runs that begin "
                    "there within a second may not notice each other; give each run its own "
                    "directory"
                )
            if self._is_in_place:
                return
            self.close()

    def _open_lock_file(self) -> int:
        if self not in _open_files:
            _open_files.append(self)
        try:
            make_folder(self.path.parent)
            return os.open(self.path, os.O_RDWR | os.O_CREAT | _O_BINARY, 0o666)
        except OSError as error:
            raise ValueError(
                f"`directory` must have a file {self.path.name} that this run can write to, got "
                f"{self.path.parent} ({type(error).__name__}: {error}): give this run another "
                "directory, or give its user the right to write to that file"
            ) from error

    @property
    def _is_in_place(self) -> bool:
        """Returns whether the path still leads to the file that was opened."""
        try:
            return self._descriptor is not None and os.path.samestat(
                self.path.stat(), os.fstat(self._descriptor)
            )
        except OSError:
            return False

    def _write_heartbeats(self) -> None:
        """Increments the counter in the record at intervals, until ``close`` stops the thread."""
        is_stopped = False
        while not is_stopped:
            with suppress(OSError):  # for example, the disk may be full for a while
                if self._own_record is not None and self._descriptor is not None and self.is_owned:
                    self._own_record = replace(self._own_record, beat=self._own_record.beat + 1)
                    self._write(self._own_record)
                    # Makes the write visible to the other machines of a network file system.
                    os.fsync(self._descriptor)
            is_stopped = self._stop.wait(_HEARTBEAT_SECONDS)

    def _write(self, owner: Owner) -> None:
        assert self._descriptor is not None
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, owner.dumps())


_open_files: list[_LockFile] = []
_O_BINARY = getattr(os, "O_BINARY", 0)


def _close_all_in_child() -> None:
    for file in _open_files:
        with suppress(OSError):
            file.close_in_child()
    _open_files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all_in_child)


def try_flock(descriptor: int) -> bool | None:
    """Tries to get the ``flock`` of a file without waiting.

    Returns:
        True if this process has got the ``flock``, False if another process has it, None if the
        platform or the file system has no ``flock``.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in _FLOCK_UNSUPPORTED:
            return None
        raise
    return True


def _read(path: Path) -> bytes:
    """Returns the content of a lock file; empty if there is no file.

    The file is opened for each read, because on a network file system a file that stays open may
    show old content.
    """
    try:
        with path.open("rb") as file:
            return file.read(_RECORD_LENGTH_BYTES)
    except FileNotFoundError:
        return b""


def _owner_text(owner: Owner | None) -> str:
    return "another process" if owner is None else str(owner)


def _boot_id() -> str:
    """Returns the id of this boot of the kernel; an empty string if the kernel has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    """Returns the namespace of process ids; an empty string if the kernel has none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
