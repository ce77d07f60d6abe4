"""One writer to a directory of checkpoints: the lock that a run holds.

The lock is a file in the directory, ``.ignite_hooks.lock``, which is never removed. Two things say
whose it is. ``flock`` on the file decides among the processes of one machine: the kernel gives it
back however its owner ends. The content of the file, a record of the owner with a counter that a
thread moves every ten seconds, decides where ``flock`` does not reach: on a network file system it
may be local to each machine, or missing. A record of another machine is stale when the process that
waits has seen it unchanged for a minute of its own clock; clocks of two machines are not compared.

A machine is told by its host name and the boot of its kernel: containers share the one or the
other, and copies of a virtual machine too.
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
_BEAT_SECONDS = 10.0
_STALE_SECONDS = 60.0
_POLL_SECONDS = 0.5
_SETTLE_SECONDS = 1.0
_NAMING_LOOKS, _NAMING_SECONDS = 20, 0.05
_RECORD_BYTES = 512  # one write of fixed length: no reader sees half of it
_NO_FLOCK = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True)
class Owner:
    """The record of a process that owns a directory, or owned it last.

    Args:
        token: a name that no other owner has.
        host: the name of its machine.
        boot: the boot of the machine's kernel, where the kernel tells.
        namespace: the namespace of its process id: a container has its own.
        pid: its process id.
        started: when the process was started, in seconds: process ids are used again.
        since: when it took the directory, for people.
        beat: a counter that moves while the process lives.
        is_released: whether it has given the directory back.
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
        """Returns a new record."""
        return cls(
            token=uuid.uuid4().hex,
            host=platform.node(),
            boot=_boot(),
            namespace=_namespace(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            since=datetime.now(timezone.utc).isoformat(sep=" ", timespec="seconds"),
        )

    @classmethod
    def loads(cls, content: bytes) -> "Owner | None":
        """Returns the record; None if the content is none."""
        try:
            return cls(**json.loads(content))
        except (TypeError, ValueError):
            return None

    def dumps(self) -> bytes:
        """Returns the content of the file, of a fixed length."""
        return json.dumps(asdict(self)).encode().ljust(_RECORD_BYTES)

    @property
    def is_of_this_machine(self) -> bool:
        """Returns whether ``flock`` reaches it for certain."""
        return (self.host, self.boot) == (platform.node(), _boot())

    @property
    def is_alive(self) -> bool | None:
        """Returns whether its process, of this machine, lives; None if that cannot be seen."""
        if self.namespace != _namespace():
            return None
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) < 1)
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class DirectoryLock:
    """The right to write to a directory, held by rank 0 for all ranks.

    It is given back when this object is gone, at the latest. A process that is forked while it is
    held does not hold it.

    Args:
        directory: the directory of checkpoints.
        ranks: the processes that train together.
        on_busy: what to do while another run has it, "error" or "wait".
        wait_seconds: how long to wait; None for as long as it takes.
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
        self._pid: int | None = None  # of the process that took it

    @property
    def is_taken(self) -> bool:
        """Returns whether this process and those that train with it hold the lock."""
        return self._pid == os.getpid()

    @property
    def is_of_parent(self) -> bool:
        """Returns whether this process was forked from the one that took the lock."""
        return self._pid not in (None, os.getpid())

    def take(self, is_stopped: Callable[[], bool] = lambda: False) -> bool:
        """Takes the lock, unless it is held already. All ranks call it.

        Args:
            is_stopped: tells on each rank whether to stop waiting.

        Returns:
            Whether it is held; False if the wait was stopped.

        Raises:
            RuntimeError: another run has it, or this process was forked from the one that has it.
        """
        self._refuse_in_child()
        if self.is_taken:
            return True
        self.has_waited = False
        started = monotonic()
        try:
            while not self._ranks.first_alone(lambda: self._is_free(started)):
                if any(self._ranks.any_of(is_stopped())):
                    return False
                sleep(_POLL_SECONDS)
            self._pid = os.getpid()
        finally:
            if not self.is_taken:
                self.release()
        return True

    def check(self) -> None:
        """Checks, before something is written or removed, that this process still has the lock.

        Where its file is gone, with the directory say, and nobody else came, it is taken again.

        Raises:
            RuntimeError: another run has it, or this process was forked from the one that has it.
        """
        self._refuse_in_child()
        file = self._file
        if file is None:
            raise RuntimeError(f"{self._directory} must not be written to without its lock")
        if file.is_own:
            return
        if not file.path.exists():
            file.close()
            if self._is_free(monotonic()):
                return
        raise RuntimeError(
            f"{self._directory} is no longer this run's: {_name(Owner.loads(_read(file.path)))} "
            f"has taken it, as this process gave no sign of life for {_STALE_SECONDS:.0f} s or its "
            f"{LOCK_NAME} was removed. Nothing more is written there: two writers would remove "
            "each other's checkpoints. Give this run another directory, or stop one of the two"
        )

    def release(self) -> None:
        """Gives the lock back. A call that broke off may be repeated; in a child nothing is given.

        No rank waits for another: this is called on every way out of a run.
        """
        if self._file is not None:
            self._file.close()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._file = self._finalizer = self._pid = None

    def _is_free(self, started: float) -> bool:
        """Takes the lock if it can be taken now.

        Args:
            started: when the wait began.
        """
        if self._file is None:
            self._file = _LockFile(self._directory / LOCK_NAME)
            self._finalizer = weakref.finalize(self, self._file.close)
        file = self._file
        verdict = file.look()
        if file.is_of_this_process and not self.has_waited:
            gc.collect()  # it may be an interrupted trainer that nobody can reach any more
            verdict = file.look()
        if verdict is _Verdict.FREE:
            file.hold()
            return True
        if verdict is _Verdict.BUSY and (not self._waits or file.is_of_this_thread):
            self._refuse(file)
        waited = monotonic() - started
        if self._waits and self._wait_seconds is not None and waited >= self._wait_seconds:
            self._refuse(file, waited)
        if not self.has_waited:
            self.has_waited = True
            self._tell(file.owner, verdict)
        return False

    def _refuse_in_child(self) -> None:
        if self.is_of_parent:
            raise RuntimeError(
                f"a checkpoint must be saved by the process that began the run, {self._pid}, and "
                f"this is {os.getpid()}, which was forked from it: nothing is written or removed "
                f"in {self._directory}; leave a forked process with os._exit()"
            )

    def _refuse(self, file: "_LockFile", waited: float | None = None) -> NoReturn:
        name, remedy = _name(file.owner), 'wait for it with SaveCheckpoint(..., on_busy="wait")'
        if file.is_of_this_process:
            name = f"another trainer of this process ({name}), which runs or is interrupted"
            remedy = "end that run first, with terminate() and run() if it is interrupted"
        elif waited is not None:
            name += f", after {waited:.0f} s of waiting still"
            remedy = "give a longer `wait_seconds`"
        raise RuntimeError(
            f"`directory` must be written to by one run at a time, got {self._directory}, which is "
            f"written to by {name}: give this run a directory of its own, stop the other, or "
            f"{remedy}"
        )

    def _tell(self, owner: "Owner | None", verdict: "_Verdict") -> None:
        limit = self._wait_seconds
        until = "for as long as it takes" if limit is None else f"for up to {limit:g} s"
        if verdict is _Verdict.BUSY:
            text = f'is written to by {_name(owner)}: waiting for its end (on_busy="wait") {until}'
        else:
            text = (
                f"was not given back by {_name(owner)}, which cannot be seen from this machine: "
                f"looking for {_STALE_SECONDS:.0f} s whether it is alive"
            )
        logger.warning("%s %s", self._directory, text)


class _Verdict(Enum):
    FREE = "free"
    BUSY = "busy"
    UNSEEN = "of another machine, and not seen to move yet"


class _LockFile:
    """The lock file, as one process tries to take it and holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner: Owner | None = None
        """The last one that was found there."""
        self._own: Owner | None = None
        self._thread_id = threading.get_ident()
        self._descriptor: int | None = None
        self._has_flock: bool | None = False  # None where there is none
        self._watched: bytes | None = None
        self._watched_since = 0.0
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None

    @property
    def is_own(self) -> bool:
        """Returns whether the file is still the one that was locked, and names no other owner."""
        if self._own is None or not self._is_same:
            return False
        found = Owner.loads(_read(self.path))
        return found is None or found.token == self._own.token

    @property
    def is_of_this_process(self) -> bool:
        """Returns whether the owner that was found is another lock of this process."""
        return self._holder is not None

    @property
    def is_of_this_thread(self) -> bool:
        """Returns whether that owner cannot end while this thread waits for it."""
        return self._holder is not None and self._holder._thread_id == threading.get_ident()

    @property
    def _holder(self) -> "_LockFile | None":
        token = None if self.owner is None else self.owner.token
        return next((f for f in _open_files if f._own is not None and f._own.token == token), None)

    def look(self) -> _Verdict:
        """Returns whether the lock can be taken now."""
        self._lock()
        content, owner = self._record()
        if self._has_flock is False:
            for _ in range(_NAMING_LOOKS):  # it may be about to write its record
                if owner is None or owner.is_released:
                    sleep(_NAMING_SECONDS)
                    content, owner = self._record()
            if owner is not None and owner.is_released:
                self.owner = None  # whoever has it now has not said who it is
            return _Verdict.BUSY
        if not content or (owner is not None and owner.is_released):
            return _Verdict.FREE
        if owner is not None and owner.is_of_this_machine:
            is_alive = False if self._has_flock else owner.is_alive
            if is_alive is not None:
                return _Verdict.BUSY if is_alive else _Verdict.FREE
        if content != self._watched:
            is_first, self._watched = self._watched is None, content
            self._watched_since = monotonic()
            return _Verdict.UNSEEN if is_first else _Verdict.BUSY
        is_stale = monotonic() - self._watched_since >= _STALE_SECONDS
        return _Verdict.FREE if is_stale else _Verdict.UNSEEN

    def _record(self) -> "tuple[bytes, Owner | None]":
        content = _read(self.path).strip(b"\0 ")
        self.owner = Owner.loads(content)
        return content, self.owner

    def hold(self) -> None:
        """Makes this process the owner.

        Raises:
            RuntimeError: another process did so at the same moment, where ``flock`` cannot tell.
        """
        self._own = Owner.of_this_process()
        self._write(self._own)
        if self._has_flock is None or self._watched is not None:
            sleep(_SETTLE_SECONDS)  # of two that write at once the later one stays
            if not self.is_own:
                raise RuntimeError(
                    f"`directory` must be written to by one run at a time, got {self.path.parent}, "
                    f"which {_name(Owner.loads(_read(self.path)))} took at the same moment: start "
                    "this run again, or give it a directory of its own"
                )
        name = "ignite_hooks.checkpoint.lock"
        self._heart = threading.Thread(target=self._beat, name=name, daemon=True)
        self._heart.start()

    def close(self) -> None:
        """Gives the lock back, if it is held. A call that broke off may be repeated."""
        descriptor, heart = self._descriptor, self._heart
        if descriptor is None:
            return
        self._stop.set()
        # Garbage is collected in any thread, in this one too.
        if heart is not None and heart.ident not in (None, threading.get_ident()):
            heart.join()
        with suppress(OSError):  # of a full disk; the kernel's lock is given back all the same
            if self._own is not None and self.is_own:
                self._write(replace(self._own, is_released=True))
        self._own, self._descriptor = None, None
        os.close(descriptor)
        _open_files[:] = [each for each in _open_files if each is not self]
        self._stop.clear()

    def close_in_child(self) -> None:
        """A child, a worker of a loader say, may outlive the owner: it must not keep the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._own, self._descriptor = None, None

    def _lock(self) -> None:
        """Opens the file and locks it; a file that was replaced meanwhile is opened again."""
        while True:
            if self._descriptor is None:
                self._has_flock = False
                self._descriptor = self._open()
            if self._has_flock is False:
                self._has_flock = _flock(self._descriptor)
            if self._has_flock is None:
                warn_once(
                    f"the file system of {self.path.parent} has no flock: two runs that begin "
                    "there within a second may not see each other; give each its own directory"
                )
            if self._is_same:
                return
            self.close()

    def _open(self) -> int:
        if self not in _open_files:
            _open_files.append(self)
        try:
            make_folder(self.path.parent)
            return os.open(self.path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
        except OSError as error:
            raise ValueError(
                f"`directory` must have a file {self.path.name} that this run can write to, got "
                f"{self.path.parent} ({type(error).__name__}: {error}): give this run another "
                "directory, or its user the right to write that file"
            ) from error

    @property
    def _is_same(self) -> bool:
        """Returns whether the file that was opened is there still."""
        try:
            return self._descriptor is not None and os.path.samestat(
                self.path.stat(), os.fstat(self._descriptor)
            )
        except OSError:
            return False

    def _beat(self) -> None:
        is_stopped = False
        while not is_stopped:
            with suppress(OSError):  # of a disk that is full for a while, say
                if self._own is not None and self._descriptor is not None and self.is_own:
                    self._own = replace(self._own, beat=self._own.beat + 1)
                    self._write(self._own)
                    os.fsync(self._descriptor)  # on a network file system others see it by this
            is_stopped = self._stop.wait(_BEAT_SECONDS)

    def _write(self, owner: Owner) -> None:
        assert self._descriptor is not None
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, owner.dumps())


_open_files: list[_LockFile] = []
_BINARY = getattr(os, "O_BINARY", 0)


def _close_all_in_child() -> None:
    for file in _open_files:
        with suppress(OSError):
            file.close_in_child()
    _open_files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all_in_child)


def _flock(descriptor: int) -> bool | None:
    """Returns whether the file could be locked; None if the file system cannot tell."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def _read(path: Path) -> bytes:
    """Returns the content, opened anew: on a network file system that asks the server."""
    try:
        with path.open("rb") as file:
            return file.read(_RECORD_BYTES)
    except FileNotFoundError:
        return b""


def _name(owner: Owner | None) -> str:
    return "another process" if owner is None else str(owner)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
