"""Probes of what one mount shows of what was done on another: how late, and by which call.

Each call is tried in a folder of its own: one may refresh what another one would answer from memory.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from rear.core.storage import opened
from rear.core.text import fine_seconds_text
from rear.diagnostics.findings import Finding, Judge
from rear.diagnostics.probe_context import ProbeContext
from rear.diagnostics.probe_process import AFTER_BYTES, BEFORE_BYTES, EVENTS, METHODS, Reply
from rear.scavenger.leader import LEASE_SECONDS

CLAIMS: Final = 10
_NEEDS_PEER: Final = "needs --peer, a second mount of the export"


def probe_visibility(context: ProbeContext) -> list[Finding]:
    """How long another mount goes on showing what was, by each call that could tell (A6, A8)."""
    if not context.has_peer:
        return [Judge(f"visibility_{method}").not_checked(_NEEDS_PEER) for method in METHODS]
    context.place("visibility")
    for method in METHODS:
        folder = context.place(f"visibility/{method}")
        for old in ("to-append", "to-rename", "to-unlink"):
            context.write_file(folder / old, bytes(BEFORE_BYTES))
    watcher = context.far[-1]
    watcher.send("watch", "visibility", limit_seconds=context.limit_seconds)
    watcher.receive()
    # It looks a few times at what is there now, so that there is something old to remember.
    time.sleep(0.1)
    done: dict[str, float] = {}
    for method in METHODS:
        for event in EVENTS[method]:
            _make_event(context, method, event)
            done[f"{method} {event}"] = time.monotonic()
    reply = watcher.receive(context.limit_seconds + 60)
    return [
        _judge(method, {event: _late(reply, done, f"{method} {event}") for event in EVENTS[method]}, context)
        for method in METHODS
    ]


def probe_visibility_claim(context: ProbeContext) -> Finding:
    """Whether who takes a file by a rename then reads all that was synced before (A8)."""
    judge = Judge("visibility_claim", "files")
    if not context.has_peer:
        return judge.not_checked(_NEEDS_PEER)
    folder = context.place(judge.probe)
    taker = context.far[-1]
    short = 0
    for number in range(CLAIMS):
        path = folder / str(number)
        context.write_file(path, bytes(BEFORE_BYTES))
        taker.ask("remember", judge.probe, name=path.name)
        _append(context, path)
        short += taker.ask("take", judge.probe, name=path.name)["open"] != AFTER_BYTES
    if short:
        return judge.broken(
            f"{short} of {CLAIMS} files were short for who had seen them before, and took them by a rename",
            "A scavenger may find acknowledged members cut off and report them as lost (A8, promise 1). Run workers "
            "and scavengers on one host.",
            short,
        )
    return judge.ok(f"{CLAIMS} files were whole for who took them by a rename", 0)


def _append(context: ProbeContext, path: Path) -> None:
    with opened(path, context.storage, write=True) as descriptor:
        context.storage.write(descriptor, [bytes(AFTER_BYTES - BEFORE_BYTES)], BEFORE_BYTES)
        context.storage.sync(descriptor)


def _make_event(context: ProbeContext, method: str, event: str) -> None:
    folder = context.folder / "visibility" / method
    match event:
        case "create":
            context.write_file(folder / "created", bytes(BEFORE_BYTES))
        case "append":
            _append(context, folder / "to-append")
        case "rename":
            context.storage.rename(folder / "to-rename", folder / "renamed")
        case _:
            context.storage.unlink(folder / "to-unlink")


def _late(reply: Reply, done: dict[str, float], key: str) -> float | None:
    """Return for how long after an event a look that began later still missed it, ``None`` for all the time."""
    if key not in reply["seen"]:
        return None
    missed = reply["missed"].get(key)
    return max(0.0, missed - done[key]) if missed is not None else 0.0


def _judge(method: str, late: dict[str, float | None], context: ProbeContext) -> Finding:
    judge = Judge(f"visibility_{method}", "s")
    limit = context.limit_seconds
    worst = max(limit if delay is None else delay for delay in late.values())
    if not worst:
        return judge.ok("all seen at once", worst)
    seen = ", ".join(
        f"{event} "
        + (f"not within {limit:.0f} s" if delay is None else fine_seconds_text(delay) if delay else "at once")
        for event, delay in late.items()
    )
    if method == "listed" and late["append"] != 0:
        return judge.broken(
            seen,
            "A file that was synced is short for who lists its folder and opens it then (A8): a scavenger may find "
            "acknowledged members cut off and report them as lost (promise 1). Run workers and scavengers on one host.",
            worst,
        )
    if method == "listdir" and worst >= min(limit, LEASE_SECONDS / 2):
        return judge.broken(
            seen,
            "rear takes a listing's word (A6): a worker that was paused may go on in a pair that was taken from it "
            "(promise 5). Run workers and scavengers on one host.",
            worst,
        )
    effect = {
        "stat": "rear never concludes from it that a file is there or gone: it lists the folder.",
        "open": "Other hosts' readers get an old archive, or none, for as long; before it writes to a file that others "
        "wrote, rear lists its folder.",
        "listed": "An old name may open, and a new one not, right after a listing; rear believes the listing.",
        "listdir": "Shorter than half a lease: a worker that was robbed notices later, and buried pairs are looked "
        "through again.",
    }[method]
    return judge.degraded(seen, effect, worst)


VISIBILITY_PROBES: Final = (probe_visibility_claim, probe_visibility)
