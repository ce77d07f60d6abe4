"""The lock of a directory of checkpoints, which allows one run at a time to write there.

The lock is a file in the directory, ``.ignite_hooks.lock``, which is never removed. Two mechanisms
decide which process owns it:

- ``flock`` on the file, among the processes of one machine. The kernel releases it however the
  owner ends.
- the content of the file, where ``flock`` does not reach: on a network file system it may be local
  to each machine, or missing. The content is a record of the owner with a heartbeat, a counter that
  a thread increments every ten seconds. The record of another machine is stale if it has not
  changed for a minute by the clock of the waiting process; clocks are never compared.

A machine is identified by its host name and the boot of its kernel, because containers, and copies
of a virtual machine, share one or the other.
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

__all__ = ["LOCK_NAME", "DirectoryLock"]

logger = logging.getLogger(__name__)

LOCK_NAME = ".ignite_hooks.lock"
_HEARTBEAT_SECONDS = 10.0
_STALE_SECONDS = 60.0
_POLL_SECONDS = 0.5
_SETTLE_SECONDS = 1.0  # the time after which all processes see the last of simultaneous writes
_RECORD_ATTEMPTS, _RECORD_RETRY_SECONDS = 20, 0.05  # up to 1 s for an owner to write its record
_RECORD_LENGTH_BYTES = 512  # fixed, and written at once: no reader sees half a record
_FLOCK_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True)
class Owner:
    """The record of the process that owns a directory, or owned it last.

    Args:
        token: a unique name of this ownership.
        host: the host name of the owner's machine.
        boot: the boot id of the machine's kernel; empty where the kernel has none.
        namespace: the namespace of the process id, which differs between containers.
        pid: the process id.
        started: the start time of the process in seconds, because process ids are reused.
        since: the time at which the owner took the lock, for messages.
        beat: the heartbeat, a counter that increases while the process lives.
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
        """Returns a record with a new token."""
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
        """Returns the record in the content of a lock file; None if it is invalid."""
        try:
            return cls(**json.loads(content))
        except (TypeError, ValueError):
            return None

    def dumps(self) -> bytes:
        """Returns the content of the lock file, padded to a fixed length."""
        return json.dumps(asdict(self)).encode().ljust(_RECORD_LENGTH_BYTES)

    @property
    def is_of_this_machine(self) -> bool:
        """Returns whether the owner runs on this machine, where ``flock`` is reliable."""
        return (self.host, self.boot) == (platform.node(), _boot_id())

    @property
    def is_alive(self) -> bool | None:
        """Returns whether the process, of this machine, is alive; None if that cannot be seen."""
        if self.namespace != _pid_namespace():
            return None
        try:
            # Another start time is that of another process that was given the same id.
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) < 1)
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class DirectoryLock:
    """The exclusive right to write to a directory, held by rank 0 for all ranks.

    The lock is released when this object is garbage collected, at the latest. A forked process does
    not inherit it.

    Args:
        directory: the directory of checkpoints.
        ranks: the processes of the run.
        on_busy: the reaction if another run holds the lock: "error" or "wait".
        wait_seconds: the longest time to wait; None for no limit.
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
        """Returns whether this run holds the lock; a forked process does not."""
        return self._pid == os.getpid()

    @property
    def is_held_by_parent(self) -> bool:
        """Returns whether this process was forked from the one that took the lock."""
        return self._pid not in (None, os.getpid())

    def acquire(self, is_stopped: Callable[[], bool] = lambda: False) -> bool:
        """Takes the lock, unless this run holds it already. All ranks call it.

        Args:
            is_stopped: a function that returns, on each rank, whether to stop waiting.

        Returns:
            Whether the lock is held; False if the wait was stopped.

        Raises:
            RuntimeError: another run holds the lock, or this process was forked from the owner.
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
            if not self.is_held:  # also after an error on another rank, or a signal
                self.release()
        return True

    def check(self) -> None:
        """Checks that this process still holds the lock, before it writes or removes files.

        If the lock file was removed, with its directory for example, and no other run has taken the
        lock, the lock is taken again.

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
        raise RuntimeError(
            f"{self._directory} is no longer this run's: "
            f"{_owner_text(Owner.loads(_read(file.path)))} "
            f"has taken it, as this process gave no sign of life for {_STALE_SECONDS:.0f} s or its "
            f"{LOCK_NAME} was removed. Nothing more is written there: two writers would remove "
            "each other's checkpoints. Give this run another directory, or stop one of the two"
        )

    def release(self) -> None:
        """Releases the lock. A forked process releases nothing.

        No rank waits for another, because every way out of a run calls it. A call that a signal
        interrupted can be repeated.
        """
        if self._file is not None:
            self._file.close()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._file = self._finalizer = self._pid = None

    def _try_acquire(self, started: float) -> bool:
        """Takes the lock if it is free, and returns whether it did.

        Args:
            started: the start of the wait, by ``monotonic``.

        Raises:
            RuntimeError: the lock is not free, and must not or cannot be waited for.
        """
        if self._file is None:
            self._file = _LockFile(self._directory / LOCK_NAME)
            self._finalizer = weakref.finalize(self, self._file.close)
        file = self._file
        availability = file.check_availability()
        if file.is_of_this_process and not self.has_waited:
            # The owner may be an interrupted trainer that is unreachable, and in a reference cycle.
            gc.collect()
            availability = file.check_availability()
        if availability is _Availability.FREE:
            file.claim()
            return True
        if availability is _Availability.BUSY and (not self._waits or file.is_of_this_thread):
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
                f"a checkpoint must be saved by the process that began the run, {self._pid}, and "
                f"this is {os.getpid()}, which was forked from it: nothing is written or removed "
                f"in {self._directory}; leave a forked process with os._exit()"
            )

    def _raise_busy(self, file: "_LockFile", waited: float | None = None) -> NoReturn:
        name = _owner_text(file.owner)
        remedy = 'wait for it with SaveCheckpoint(..., on_busy="wait")'
        if file.is_of_this_process:
            name = f"another trainer of this process ({name}), which runs or is interrupted"
            remedy = "end that run first, with terminate() and run() if it is interrupted"
        elif waited is not None:
            name += f", after {waited:.0f} s of waiting still"
            remedy = "give a longer `wait_seconds`"
        raise RuntimeError(
            f"`directory` must be written to by one run at a time, got {self._directory}, which is "
            f"written to by {name}: give this run another directory, stop the other run, or "
            f"{remedy}"
        )

    def _warn_of_wait(self, owner: "Owner | None", availability: "_Availability") -> None:
        """Logs for whom, and how long, this run will wait."""
        limit = self._wait_seconds
        until = "for as long as it takes" if limit is None else f"for up to {limit:g} s"
        if availability is _Availability.BUSY:
            text = (
                f"is written to by {_owner_text(owner)}: waiting for its end "
                f'(on_busy="wait") {until}'
            )
        else:
            text = (
                f"was not released by {_owner_text(owner)}, which cannot be seen from this "
                f"machine: checking for {_STALE_SECONDS:.0f} s whether it is alive"
            )
        logger.warning("%s %s", self._directory, text)


class _Availability(Enum):
    """The answer whether a lock can be taken."""

    FREE = "free"
    BUSY = "busy"
    UNKNOWN = "held by another machine, and not known to be alive yet"


class _LockFile:
    """The lock file, from the first attempt of one process to take it until its release."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner: Owner | None = None
        """The owner that the last look at the file has found."""
        self._own_record: Owner | None = None
        self._thread_id = threading.get_ident()
        self._descriptor: int | None = None
        self._has_flock: bool | None = False  # None if the file system has no flock
        self._watched_content: bytes | None = None
        self._watched_since = 0.0
        self._stop = threading.Event()
        self._heartbeat_thread: threading.Thread | None = None

    @property
    def is_owned(self) -> bool:
        """Returns whether the locked file is still in place, and names no other owner."""
        if self._own_record is None or not self._is_in_place:
            return False
        found = Owner.loads(_read(self.path))
        return found is None or found.token == self._own_record.token

    @property
    def is_of_this_process(self) -> bool:
        """Returns whether the owner that was found is another trainer of this process."""
        return self._other_lock is not None

    @property
    def is_of_this_thread(self) -> bool:
        """Returns whether the owner runs in this thread, so that waiting for it would never end."""
        return self._other_lock is not None and self._other_lock._thread_id == threading.get_ident()

    @property
    def _other_lock(self) -> "_LockFile | None":
        """The lock file of this process whose record was found; None if another process owns it."""
        token = None if self.owner is None else self.owner.token
        return next(
            (f for f in _open_files if f._own_record is not None and f._own_record.token == token),
            None,
        )

    def check_availability(self) -> _Availability:
        """Returns whether the lock can be taken now, and tries to get the ``flock`` for that."""
        self._open_and_lock()
        content, owner = self._read_record()
        if self._has_flock is False:
            # Another process holds the flock, and may not have written its record yet.
            for _ in range(_RECORD_ATTEMPTS):
                if owner is None or owner.is_released:
                    sleep(_RECORD_RETRY_SECONDS)
                    content, owner = self._read_record()
            if owner is not None and owner.is_released:
                self.owner = None  # the record is that of the previous owner
            return _Availability.BUSY
        if not content or (owner is not None and owner.is_released):
            return _Availability.FREE
        if owner is not None and owner.is_of_this_machine:
            # Having the flock proves that the owner is dead: the kernel has released its own.
            is_alive = False if self._has_flock else owner.is_alive
            if is_alive is not None:
                return _Availability.BUSY if is_alive else _Availability.FREE
        # The process of the owner cannot be seen: only a heartbeat shows that it is alive.
        if content != self._watched_content:
            is_first, self._watched_content = self._watched_content is None, content
            self._watched_since = monotonic()
            return _Availability.UNKNOWN if is_first else _Availability.BUSY
        is_stale = monotonic() - self._watched_since >= _STALE_SECONDS
        return _Availability.FREE if is_stale else _Availability.UNKNOWN

    def _read_record(self) -> "tuple[bytes, Owner | None]":
        """Reads the file, and remembers its owner."""
        content = _read(self.path).strip(b"\0 ")
        self.owner = Owner.loads(content)
        return content, self.owner

    def claim(self) -> None:
        """Makes this process the owner, and starts the heartbeat.

        Raises:
            RuntimeError: another process has become the owner at the same time, without ``flock``.
        """
        self._own_record = Owner.of_this_process()
        self._write(self._own_record)
        if self._has_flock is None or self._watched_content is not None:
            # If two processes write at once, the later record remains, and the other one gives way.
            sleep(_SETTLE_SECONDS)
            if not self.is_owned:
                raise RuntimeError(
                    f"`directory` must be written to by one run at a time, got {self.path.parent}, "
                    f"which {_owner_text(Owner.loads(_read(self.path)))} took at the same time: "
                    "start this run again, or give it another directory"
                )
        name = "ignite_hooks.checkpoint.lock"
        self._heartbeat_thread = threading.Thread(
            target=self._write_heartbeats, name=name, daemon=True
        )
        self._heartbeat_thread.start()

    def close(self) -> None:
        """Releases the lock, if it is held. A call that a signal interrupted can be repeated."""
        descriptor, thread = self._descriptor, self._heartbeat_thread
        if descriptor is None:
            return
        self._stop.set()
        # The finalizer may run in any thread, the heartbeat thread included, which cannot join
        # itself.
        if thread is not None and thread.ident not in (None, threading.get_ident()):
            thread.join()
        with suppress(OSError):  # a full disk; the flock is released all the same
            if self._own_record is not None and self.is_owned:
                self._write(replace(self._own_record, is_released=True))
        self._own_record, self._descriptor = None, None
        os.close(descriptor)
        _open_files[:] = [each for each in _open_files if each is not self]
        self._stop.clear()

    def close_in_child(self) -> None:
        """Closes the file in a forked process, such as a loader worker, that may outlive the owner.

        The open file would keep the ``flock`` after the owner has ended.
        """
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._own_record, self._descriptor = None, None

    def _open_and_lock(self) -> None:
        """Opens the file and tries to lock it, again if the file was replaced meanwhile."""
        while True:
            if self._descriptor is None:
                self._has_flock = False
                self._descriptor = self._open_lock_file()
            if self._has_flock is False:
                self._has_flock = _try_flock(self._descriptor)
            if self._has_flock is None:
                warn_once(
                    f"the file system of {self.path.parent} has no flock: two runs that begin "
                    "there within a second may not see each other; give each its own directory"
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
                "directory, or its user the right to write that file"
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
        is_stopped = False
        while not is_stopped:
            with suppress(OSError):  # a disk that is temporarily full
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


def _try_flock(descriptor: int) -> bool | None:
    """Returns whether the file was locked; None if the file system has no ``flock``."""
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
    """Returns the content of a file.

    The file is opened for each read: on a network file system only that asks the server.
    """
    try:
        with path.open("rb") as file:
            return file.read(_RECORD_LENGTH_BYTES)
    except FileNotFoundError:
        return b""


def _owner_text(owner: Owner | None) -> str:
    return "another process" if owner is None else str(owner)


def _boot_id() -> str:
    """Returns the id of this boot of the kernel; empty where the kernel has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    """Returns the namespace of process ids; empty where the kernel has none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
