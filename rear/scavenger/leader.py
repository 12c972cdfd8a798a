"""Who leads a base: one scavenger at a time, by a lock that is only a hint and a record that other hosts can read.

The lock excludes on one host and wherever locks work. Where they do not, the owner's record decides: its beat changes
while the owner lives, and a scavenger takes over only from an owner that is provably gone, or whose beat has not
changed over a lease of the taker's own clock. What a deposed leader may still do is bounded elsewhere: it finds its
claims gone, and archives on which it was working get a new inode.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import stat
import threading
from typing import Any, Final, NamedTuple

from rear.core.layout import Layout, make_in_base
from rear.core.liveness import Liveness, Observations, Process, decode_process, is_running, this_process
from rear.core.log import warn
from rear.core.storage import LOCAL, Storage, opened
from rear.core.threads import Bell, HelperThread
from rear.errors import JournalError, NotLeaderError
from rear.journal.codec import decode_line, encode_line
from rear.scavenger.refusals import check_essential

LEASE_SECONDS: Final = 60.0
_LEASE_LIMIT_SECONDS: Final = 86_400.0
_RECORD_BYTES: Final = 1024
_BEATS_A_LEASE: Final = 4
_TERM: Final = re.compile("[1-9][0-9]{0,17}")
_TERMS_END: Final = 10**18 - 1
"""Who adds one at a time never comes here: a term of this number is forged, and would leave no next one."""
_NOTHING_TO_DO: Final = "nothing to do here"

# POSIX locks do not exclude threads of one process from each other.
_led_here: set[str] = set()
_led_here_lock = threading.Lock()
#: By path of the lock: what this process has seen of a leader before and could not write down.
_unsaved: dict[str, Observations] = {}


class Leadership:
    """The right to scavenge one base; use it as a context manager.

    Attributes:
        layout: of the base.
        name: of this leader, unique for ever; its claim folder has this name.
        process: in which it runs.

    Raises:
        NotLeaderError: another scavenger leads; the message says who.
        BaseError: something is shut without which nothing can be scavenged.
        OSError: the lock cannot be made or written.
    """

    def __init__(self, layout: Layout, *, liveness: Liveness | None = None, storage: Storage = LOCAL) -> None:
        self.layout = layout
        self._liveness = liveness or Liveness()
        self._storage = storage
        self.process = this_process()
        self.name = f"{self.process.host}-{self.process.pid}-{secrets.token_hex(6)}"
        self._beat = 0
        self._stop = Bell()
        self._released = False
        self._key = str(layout.lock)
        with _led_here_lock:
            if self._key in _led_here:
                raise NotLeaderError(f"{layout.base} is being scavenged by this process already")
            _led_here.add(self._key)
        try:
            self._descriptor = self._open()
            try:
                self._take()
            except BaseException:
                storage.close(self._descriptor)
                raise
        except BaseException:
            with _led_here_lock:
                _led_here.discard(self._key)
            raise
        self._thread = HelperThread(self._keep_beating)
        self._thread.start("rear leader")

    def _open(self) -> int:
        check_essential(self.layout, storage=self._storage)
        make_in_base(self.layout.base, self.layout.state, storage=self._storage)
        try:
            return self._storage.create(self.layout.lock)
        except FileExistsError:
            return self._storage.open(self.layout.lock, write=True)

    def _take(self) -> None:
        got_lock = self._storage.try_lock(self._descriptor)
        owner = self._owner()
        if owner is None:
            # A leader blanks its record when it ends; one that has just begun has not written it yet.
            if not got_lock and self._unchanged_seconds("", "") < LEASE_SECONDS:
                raise self._not_leader(owner)
        # A record of this very process is of a leadership that has ended: it could not be wiped, the disk was full.
        elif not got_lock or decode_process(owner) != self.process:
            self._look_at_owner(owner, got_lock)
        self._begin_term()
        _unsaved.pop(self._key, None)
        self._confirmed = self._storage.uptime()
        self._write()

    def _look_at_owner(self, owner: dict[str, Any], got_lock: bool) -> None:
        """Return when the owner is gone: that is seen, or it shows no sign of life for a lease.

        So does one whose process runs: it may be another program by now (``exec``). A lock that somebody holds counts
        as little: a server may keep one for ever whose owner is dead.
        """
        running = self._liveness.is_running(decode_process(owner), str(owner.get("leader")))
        if running is False and got_lock:
            return
        left = _lease_seconds(owner) - self._unchanged_seconds(str(owner.get("leader")), str(owner.get("beat")))
        if left <= 0:
            return
        if running or not got_lock:
            raise self._not_leader(owner)
        raise NotLeaderError(
            f"{self.layout.base} was last led by {_describe(owner)}, which cannot be seen from here; if it shows no "
            f"sign of life, a scavenge takes over in {left:.0f} s",
            "rear scavenge --wait waits for that",
            left,
        )

    def _unchanged_seconds(self, leader: str, beat: str) -> float:
        observations = _unsaved.pop(self._key, None) or Observations(self.layout, storage=self._storage, topic="leader")
        unchanged = observations.unchanged_seconds(leader, beat)
        try:
            self._save(observations)
        except OSError as error:
            # Who lays something in the way must not keep all others from scavenging: who waits goes by his own memory.
            _unsaved[self._key] = observations
            warn("%s: that nobody leads cannot be noted, only waited for: %s", self.layout.observations, error)
        return unchanged

    def _save(self, observations: Observations) -> None:
        try:
            observations.save()
        except (IsADirectoryError, NotADirectoryError):
            path = self.layout.observation("leader")
            for thing, is_right in ((path.parent, stat.S_ISDIR), (path, stat.S_ISREG)):
                with contextlib.suppress(FileNotFoundError):
                    if not is_right(self._storage.status(thing).st_mode):
                        aside = thing.with_name(f"{thing.name}-{secrets.token_hex(6)}")
                        self._storage.rename(thing, aside)
                        warn("%s stood in the way of what scavengers note: it is %s now", thing, aside)
            observations.save()

    def _not_leader(self, owner: dict[str, Any] | None) -> NotLeaderError:
        return NotLeaderError(f"{self.layout.base} is being scavenged by {_describe(owner)}", _NOTHING_TO_DO)

    def _begin_term(self) -> None:
        """Take the next number: of several scavengers that begin at once where no lock works, one gets it."""
        folder = self.layout.terms
        make_in_base(self.layout.base, folder, storage=self._storage)
        terms = self._terms()
        if terms[-1:] == [_TERMS_END]:
            terms = self._put_aside_forged(terms)
        self._term = terms[-1] + 1 if terms else 1
        try:
            self._storage.close(self._storage.create(folder / str(self._term)))
        except FileExistsError:
            raise NotLeaderError(
                f"another process has just begun to scavenge {self.layout.base}", _NOTHING_TO_DO
            ) from None
        for earlier in terms:
            # The newest stays for ever, so that no number is used twice.
            with contextlib.suppress(OSError):
                self._storage.unlink(folder / str(earlier))

    def _put_aside_forged(self, terms: list[int]) -> list[int]:
        """Give terms that nobody comes to a name that counts no more, whatever they are; return those that count."""
        half = _TERMS_END // 2
        for forged in filter(half.__lt__, terms):
            with contextlib.suppress(FileNotFoundError):
                name = self.layout.terms / str(forged)
                self._storage.rename(name, name.with_name(f"{forged}-{secrets.token_hex(6)}"))
        kept = [term for term in terms if term <= half]
        # Which number there was before is not known: no number may be used twice.
        return [*kept, max(secrets.randbelow(half), *kept[-1:])]

    def _terms(self) -> list[int]:
        return _terms_of(self.layout, self._storage)

    def _owner_by_name(self) -> dict[str, Any] | None:
        """Read the record, if need be through a new descriptor: NFS fails all I/O on one whose lock was lost."""
        try:
            return self._owner()
        except OSError:
            with opened(self.layout.lock, self._storage) as descriptor:
                return _decode_owner(self._storage.read(descriptor, _RECORD_BYTES, 0))

    def _owner(self) -> dict[str, Any] | None:
        return _decode_owner(self._storage.read(self._descriptor, _RECORD_BYTES, 0))

    def _write(self) -> None:
        record = {
            "kind": "leader",
            "leader": self.name,
            "beat": self._beat,
            "lease_seconds": LEASE_SECONDS,
            **self.process._asdict(),
        }
        # One length for all, so that a shorter record never leaves the end of a longer one behind.
        self._storage.write(self._descriptor, [encode_line(record).ljust(_RECORD_BYTES)], 0)
        self._storage.sync(self._descriptor)

    def _keep_beating(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / _BEATS_A_LEASE) and not self._released:
            begun = self._storage.uptime()
            self._beat += 1
            try:
                self._write_if_mine()
            except NotLeaderError:
                # The next step that needs the leadership finds out as well, and says so.
                return
            except Exception:
                # Whatever it is, it may pass: no descriptor, no memory, a folder that is not seen.
                continue
            if self._storage.uptime() - begun < LEASE_SECONDS / 2:
                self._confirmed = begun

    def _write_if_mine(self) -> None:
        if self._storage.uptime() - self._confirmed > LEASE_SECONDS / 2:
            self.prove()
        self._write()

    def prove(self) -> None:
        """Make sure that nobody has taken over.

        Call it right before a step that a deposed leader must not do, and right after a commit: who takes over later
        sees that, and completes the merge, but who did so before may have undone it.

        Raises:
            NotLeaderError: somebody has; stop at once and touch nothing.
        """
        # Where no thread could be made at the beginning.
        self._thread.start("rear leader")
        begun = self._storage.uptime()
        if self._terms()[-1:] != [self._term]:
            raise NotLeaderError(f"another scavenger has taken over {self.layout.base}: nothing more to do here")
        if begun - self._confirmed <= LEASE_SECONDS / 2:
            return
        owner = self._owner_by_name()
        claims = self._storage.names(self.layout.claims)
        if owner is None or owner.get("leader") != self.name or self.name not in claims:
            raise NotLeaderError(f"{_describe(owner)} has taken over {self.layout.base} while this process was paused")
        self._confirmed = begun

    def release(self) -> None:
        """Let others lead. Does nothing the second time."""
        if self._released:
            return
        self._released = True
        self._stop.ring()
        self._thread.join()
        try:
            owner = self._owner()
            if owner is not None and owner.get("leader") == self.name:
                self._storage.write(self._descriptor, [b" " * _RECORD_BYTES], 0)
        except OSError:
            # A record that stays is seen to be of a process that has ended, or waited out.
            pass
        finally:
            with contextlib.suppress(OSError):
                self._storage.close(self._descriptor)
            with _led_here_lock:
                _led_here.discard(self._key)

    def __enter__(self) -> Leadership:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class Owner(NamedTuple):
    """What the lock's record says of the leader."""

    leader: str
    process: Process
    beat: str
    lease_seconds: float
    #: When its term began, by the clock of whoever keeps the file's times; for people.
    since_ns: int | None


def read_owner(layout: Layout, *, storage: Storage = LOCAL) -> Owner | None:
    """Return who leads a base, or did when it died; ``None`` when nobody does.

    Raises:
        OSError: the lock cannot be read.
    """
    try:
        with opened(layout.lock, storage) as descriptor:
            record = _decode_owner(storage.read(descriptor, _RECORD_BYTES, 0))
    except FileNotFoundError:
        return None
    if record is None:
        return None
    since_ns = None
    with contextlib.suppress(OSError):
        terms = _terms_of(layout, storage)
        since_ns = storage.status(layout.terms / str(terms[-1])).st_mtime_ns if terms else None
    return Owner(
        str(record["leader"]), decode_process(record), str(record.get("beat")), _lease_seconds(record), since_ns
    )


def _terms_of(layout: Layout, storage: Storage) -> list[int]:
    """Return the numbers of the terms that there are; a name that no leader gives is none of them."""
    return sorted(int(name) for name in storage.names(layout.terms) if _TERM.fullmatch(name))


def is_led(layout: Layout, *, storage: Storage = LOCAL) -> bool:
    """Whether a scavenger leads a base, for all that is known: it is not seen to be gone, nor silent for a lease."""
    owner = read_owner(layout, storage=storage)
    if owner is None or is_running(owner.process) is False:
        return False
    observations = Observations(layout, storage=storage, topic="leader")
    return observations.unchanged_seconds(owner.leader, owner.beat) < owner.lease_seconds


def _lease_seconds(owner: dict[str, Any]) -> float:
    lease = owner.get("lease_seconds")
    return lease if isinstance(lease, (int, float)) and 0 < lease <= _LEASE_LIMIT_SECONDS else LEASE_SECONDS


def _decode_owner(data: bytes) -> dict[str, Any] | None:
    try:
        owner = decode_line(data.rstrip(b" \0").removesuffix(b"\n"))
    except JournalError:
        return None
    return owner if owner.get("leader") else None


def _describe(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')}"
