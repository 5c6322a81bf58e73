"""A lock that is a record of its owner: owner, host, process and the time of its last renewal.

An object store has no other lock, and some file systems have none. The owner renews the record; one that is
no longer renewed, or whose process has ended on this machine, is taken over. `lock_file.py` also keeps such a
record beside a lock of the operating system, for machines that cannot see that lock.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from teacher_cache.errors import RppError, printable

RENEW_SECONDS = 60.0
DEAD_AFTER_SECONDS = 300.0  # five missed renewals; clocks of machines may differ by a minute or two
SETTLE_SECONDS = 2.0  # if two processes write the record at the same time, the one that writes last has it

LATEST = 1e11  # seconds; a later time of a renewal is damage


class HeldError(Exception):
    """Another process holds the lock. `holder` is its record, if there is one."""

    def __init__(self, holder: dict[str, Any] | None) -> None:
        super().__init__()
        self.holder = holder

    def explain(self, busy: RppError) -> RppError:
        """Return `busy` with the holder of the lock."""
        if self.holder is None:
            return busy
        seen = timedelta(seconds=max(0, round(time.time() - self.holder["time"])))
        process, dead = _process(self.holder), timedelta(seconds=DEAD_AFTER_SECONDS)
        if self.holder.get("host") == socket.gethostname():
            return type(busy)(f"{busy} ({process}, last seen {seen} ago)")
        return type(busy)(
            f"{busy} ({process}, last seen {seen} ago; one that was killed counts as dead after {dead})"
        )


class RecordPlace(Protocol):
    """Where a record is stored. `url` names it in messages."""

    url: str

    def create(self, content: bytes) -> None:
        """Write the record if there is none.

        Raises:
            FileExistsError: there is one.
        """

    def read(self) -> bytes:
        """Return the record.

        Raises:
            FileNotFoundError: there is none.
        """

    def modified(self) -> float:
        """Return when the record was written, for one that cannot be parsed; 0 if that is not known."""

    def replace(self, content: bytes) -> None:
        """Write the record, whether or not there is one."""

    def remove(self) -> None:
        """Remove the record if it exists."""


class OwnerRecord:
    """The record of one owner. `kind` is the lock of the operating system that it accompanies, or `record`.

    Whoever has that lock as well takes over the record of another machine. A process of this machine that
    runs keeps its record in any case: the lock file may have been deleted.
    """

    owners: set[str] = set()  # noqa: RUF012 - owners in this process

    def __init__(self, place: RecordPlace, kind: str = "record") -> None:
        self._place, self._kind = place, kind
        self._owner = uuid.uuid4().hex
        self._stop = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True, name="lock-record")

    def acquire(self, settle: bool = False) -> None:
        """Write the record, in place of that of a dead owner if there is one, and keep it renewed.

        Args:
            settle: creating a file may not be exclusive here: look again after `SETTLE_SECONDS`.

        Raises:
            HeldError: another process has it.
        """
        while True:
            try:
                self._place.create(self._content())
            except FileExistsError:
                holder = read_record(self._place)
                if holder is None:  # removed since then
                    continue
                settle = self._take_over(holder) or settle
            break
        if settle:
            time.sleep(SETTLE_SECONDS)
            winner = read_record(self._place)
            if winner is None or winner.get("owner") != self._owner:
                raise HeldError(winner)
        self.owners.add(self._owner)
        self._renewing.start()

    def release(self) -> None:
        """Stop the renewal, and remove the record if it is still this owner's."""
        self._stop.set()
        self._renewing.join()
        self.owners.discard(self._owner)
        # the error that stopped the work matters more than a record that stays until it counts as dead
        with suppress(RppError, OSError):
            if (read_record(self._place) or {}).get("owner") == self._owner:
                self._place.remove()

    def _content(self) -> bytes:
        pid = os.getpid()
        record = {
            "owner": self._owner,
            "kind": self._kind,
            "host": socket.gethostname(),
            "pid": pid,
            "started": start_of(pid),
            "time": time.time(),
        }
        return json.dumps(record).encode()

    def _take_over(self, holder: dict[str, Any]) -> bool:
        """Replace the record of a dead owner; return whether another process may do so at the same time."""
        silent = time.time() - holder["time"]
        elsewhere = holder.get("host") != socket.gethostname()
        same_lock = self._kind != "record" and holder.get("kind") == self._kind
        died = self._died_here(holder)
        if not (died or silent >= DEAD_AFTER_SECONDS or (same_lock and elsewhere)):
            raise HeldError(holder)
        lock, process = self._place.url, _process(holder)
        if not same_lock:
            reason = "has ended" if died else "no longer renews it"
            say(f"taking over the lock {lock} of {process}, which {reason}")
        elif elsewhere and silent < 2 * RENEW_SECONDS:
            ago = timedelta(seconds=max(0, round(silent)))
            say(
                f"{process} had the lock {lock} until {ago} ago; if it still runs, stop it: then the "
                "locks of this file system do not reach other machines"
            )
        self._place.replace(self._content())
        return not same_lock

    def _died_here(self, holder: dict[str, Any]) -> bool:
        """Whether the holder was a process of this machine that has ended."""
        pid = holder.get("pid")
        if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
            return False
        if pid == os.getpid():  # a restarted container has the same host and process
            return holder.get("owner") not in self.owners
        started = holder.get("started")
        if started is not None and started != start_of(pid):  # its number belongs to another process now
            return True
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            return False
        return False

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            # if the store is unreachable the work itself stops
            with suppress(RppError, OSError):
                holder = read_record(self._place) or {}
                if holder.get("owner") != self._owner:
                    say(f"{_process(holder)} has taken over the lock {self._place.url}")
                    return
                self._place.replace(self._content())


def say(note: str) -> None:
    """Print a remark for the user on standard error."""
    with suppress(OSError):  # a closed terminal
        print(f"note: {printable(note)}", file=sys.stderr, flush=True)


def read_record(place: RecordPlace) -> dict[str, Any] | None:
    """Return the current record; None if there is none. One that cannot be parsed has only a time."""
    try:
        record = json.loads(place.read())
        record["time"] = float(record["time"])
        if not 0 <= record["time"] < LATEST:
            raise ValueError("no such time")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        return {"time": place.modified()}
    return dict(record)


def _process(holder: dict[str, Any]) -> str:
    return printable(f"process {holder['pid']} on {holder.get('host')}") if "pid" in holder else "a process"


def start_of(pid: int) -> int | None:
    """Return when a process of this machine started, in clock ticks after the boot; None if not known."""
    try:
        # the name, in brackets, may contain anything
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
