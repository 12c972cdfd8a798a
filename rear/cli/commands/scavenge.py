"""``rear scavenge``: merge what the workers wrote into the final archives."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Annotated, Any, Literal, NamedTuple

import typer

from rear.cli.executors import Dask, Executors, Jobs
from rear.cli.exit import ATTENTION, note, told
from rear.cli.options import AssumeDead, Base, Json, Plain, Quiet, flag, seconds, size_bytes, style_of, valued
from rear.cli.signals import StopRequest
from rear.core.threads import HelperThread
from rear.errors import NotLeaderError, UnsupportedError, UsageError

Verify = Annotated[
    bool | None,
    flag("Read and check every member before the merge, and the merged bytes after it.", "--verify/--no-verify"),
]
Flush = Annotated[bool, flag("Ask live workers to end their temp archives now, and merge these too.", "--flush")]
FlushWait = Annotated[str, valued("DURATION", "How long --flush waits for them.")]
Wait = Annotated[
    bool,
    flag("Wait until what cannot be seen from here has shown a sign of life, or counts as dead (a lease).", "--wait"),
]
Every = Annotated[
    str | None,
    valued("DURATION", "Keep running, and scavenge this often (30s, 5m, 2h); what fails is told, and tried again."),
]
DryRun = Annotated[bool, flag("Show what would be merged; change nothing.", "--dry-run", "-n")]
OnConflict = Annotated[
    Literal["rename", "first", "last"] | None,
    typer.Option(
        help="Members of one name and other content: keep both (a~1.txt), or one, the other to lost+found.",
        show_default="rename",
    ),
]
OnPartial = Annotated[
    Literal["keep", "drop"] | None,
    typer.Option(
        "--partial",
        help="Files that were flushed, and whose writer died: keep what there is, or to lost+found.",
        show_default="keep",
    ),
]
MaxSize = Annotated[
    str | None, valued("SIZE", "Rename a final archive to ar-0.zip, ar-1.zip, … before it grows larger.")
]
MaxMembers = Annotated[int | None, valued("N", "The same by number of members.", min=1)]
OwnerOnly = Annotated[
    bool, flag("Take only temp archives of this user, and merge only into archives of this user.", "--owner-only")
]
UntilEof = Annotated[bool, typer.Option("--until-eof", hidden=True)]


def scavenge(
    base: Base = ".",
    verify: Verify = None,
    flush: Flush = False,
    flush_wait: FlushWait = "30s",
    wait: Wait = False,
    every: Every = None,
    dry_run: DryRun = False,
    plain: Plain = False,
    json: Json = False,
    quiet: Quiet = False,
    on_conflict: OnConflict = None,
    partial: OnPartial = None,
    max_size: MaxSize = None,
    max_members: MaxMembers = None,
    assume_dead: AssumeDead = None,
    jobs: Jobs = None,
    dask: Dask = None,
    owner_only: OwnerOnly = False,
    until_eof: UntilEof = False,
) -> None:
    """Merge what the workers wrote into the final archives.

    Temp archives that their workers have ended are merged at once; those of crashed workers are checked member by
    member first; live workers are left alone. Several scavengers may be started anywhere: one works, the others
    leave.

    Example: rear scavenge --verify /nfs/base
    """
    runs = _Runs(
        base,
        {
            "verify": verify,
            "flush": flush,
            "flush_wait_seconds": seconds(flush_wait, zero=True),
            "wait": wait,
            "dry_run": dry_run,
            "on_conflict": on_conflict,
            "partial": partial,
            "max_size": size_bytes(max_size),
            "max_members": max_members,
            "assume_dead": assume_dead or (),
            "owner_only": owner_only,
        },
        style_of(plain=plain, json=json, quiet=quiet),
        Executors(base, jobs, dask),
    )
    raise typer.Exit(runs.once() if every is None else runs.repeat(seconds(every), until_eof=until_eof))


def scavenger(
    directory: Annotated[str, typer.Option("-d", "--directory", envvar="REAR_BASE", help="The base.")] = ".",
    verify: Verify = None,
    flush: Flush = False,
    every: Every = None,
    plain: Plain = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge what the workers wrote into the final archives: ``rear scavenge`` under its older name."""
    scavenge(directory, verify=verify, flush=flush, every=every, plain=plain, json=json, quiet=quiet)


class _Runs(NamedTuple):
    """One scavenge, or one after the other: of what base, with what options of `rear.scavenge`, shown how, by whom."""

    base: str
    options: dict[str, Any]
    style: str
    executors: Executors

    def once(self, stop: StopRequest | None = None) -> int:
        """Scavenge once; return 1 when something was lost or had to be left, else 0."""
        import rear
        from rear.cli.display.follow import follow
        from rear.events import Event

        def until_stopped(events: Iterator[Event]) -> Iterator[Event]:
            for event in events:
                yield event
                if stop is not None and stop.is_set():
                    return

        with (
            self.executors.open() as executor,
            closing(rear.scavenge(self.base, executor=executor, **self.options)) as events,  # type: ignore[type-var]
        ):
            progress = follow(
                until_stopped(events),
                self.style,
                command="scavenge",
                subject=self.base,
                dry_run=self.options["dry_run"],
                sums_up=stop is None,
            )
            return ATTENTION if progress.needs_attention else 0

    def repeat(self, pause_seconds: float, *, until_eof: bool) -> int:
        """Scavenge again and again until SIGTERM or SIGINT, or until standard input ends: the parent is gone then."""
        stop = StopRequest()
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        stop.set_by(*(number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN))
        watch = HelperThread(lambda: _wait_for_eof(stop))
        worst, has_begun = 0, False
        while not stop.is_set():
            if until_eof:
                # There may have been too many threads the last time.
                watch.start("rear until-eof")
            try:
                worst = max(worst, self.once(stop))
            except NotLeaderError as error:
                # The other one may end before this one does.
                if self.style in ("live", "plain"):
                    note(str(error))
            except Exception as error:
                if self._is_for_good(error, has_begun):
                    raise
                # It may pass: a server was restarted, there was no descriptor, memory or thread, no base to be seen.
                worst = max(worst, ATTENTION)
                with suppress(Exception):
                    note(f"{told(error)}; it is tried again in {pause_seconds:g} s")
            has_begun = True
            stop.wait(pause_seconds)
        return worst

    def _is_for_good(self, error: Exception, has_begun: bool) -> bool:
        """Whether no later scavenge could do better: nobody reads what it says, or the options make no sense.

        What made sense once, and does not now, is a file of the base that somebody is editing.
        """
        if isinstance(error, BrokenPipeError):
            return self.style == "json"
        return isinstance(error, (UsageError, UnsupportedError)) and not has_begun


def _wait_for_eof(stop: StopRequest) -> None:
    # A closed one has ended too.
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    stop.set()
