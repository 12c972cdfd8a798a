"""One thing that is shut, or bad, costs itself alone: it is told by name as ``refused``, and the rest goes on.

Several users share a base, and each may shut what is hers. Who leads proves that it still does before it says so: to be
taken over makes files go missing as well, and a server that is down fails that too, and ends the scavenge.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from rear.core.layout import Layout
from rear.core.liveness import Observations
from rear.core.names import STATE, is_litter, is_safe_component
from rear.core.records import Pair
from rear.core.storage import Storage
from rear.errors import BaseError
from rear.events import Refused

#: What somebody has to mend; other errors may pass.
_LASTING: Final = (errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ELOOP, errno.EACCES, errno.EPERM)
_COSTS: Final = {
    "graveyard": "pairs of crashed workers stay claimed, and what came to buried ones late is not looked for",
    "lost+found": "what belongs there stays where it is",
    "index": "names are looked up in the archives themselves, which takes longer",
    "observations": "workers and scavengers that cannot be seen from here are not taken over",
    "reports": "no report is written",
    "flush": "live workers cannot be asked to end their temp archives",
}


def tried(pair: Pair, what: str, step: Callable[[], None], *, prove: Callable[[], None]) -> Iterator[Refused]:
    """Do something with one pair, and say so when that cannot be done.

    Raises:
        NotLeaderError: ``prove`` finds that another scavenger has taken over.
        OSError: it fails, too: it is not this pair alone.
    """
    try:
        step()
    except OSError as error:
        prove()
        yield Refused(str(pair), f"it cannot be {what}: {error}; left as it is")


def check_essential(layout: Layout, *, storage: Storage) -> None:
    """Make sure that all is there, or can be made, without which nothing can be scavenged.

    Raises:
        BaseError: something is shut, or no folder; the message says which, and what to do.
        OSError: something cannot be looked at now.
    """
    for path, error in _unusable(layout, layout.essential, storage):
        if error.errno not in _LASTING:
            raise error
        raise BaseError(
            f"{path} {_why_unusable(error)}, and run it again. Without it nothing can be merged; nothing was "
            "changed, and nothing is lost"
        )


def unusable_parts(layout: Layout, parts: Iterable[Path] | None = None, *, storage: Storage) -> Iterator[Refused]:
    """Yield what rear keeps in a base, or those parts of it, and cannot use, and what that costs: the rest goes on."""
    try:
        storage.look_into(layout.state)
    except OSError as shut:
        if shut.errno != errno.ENOENT:
            is_shut = shut.errno in (errno.EACCES, errno.EPERM)
            why = "this user may not look into it: check its owner and mode" if is_shut else f"it {_why_unusable(shut)}"
            yield Refused(STATE, f"{why}; nothing can be seen or merged")
        return
    for path, error in _unusable(layout, layout.parts if parts is None else parts, storage):
        cost = _COSTS.get(path.name, "nothing is merged")
        yield Refused(f"{STATE}/{path.name}", f"it {_why_unusable(error)}; until then {cost}")


def _unusable(layout: Layout, parts: Iterable[Path], storage: Storage) -> Iterator[tuple[Path, OSError]]:
    for path in parts:
        try:
            if path == layout.lock:
                _look_at_lock(path, storage)
            else:
                storage.look_into(path)
        except OSError as error:
            # What is not there is made when it is needed.
            if error.errno != errno.ENOENT:
                yield path, error


def _look_at_lock(path: Path, storage: Storage) -> None:
    # Never opened: closing any descriptor of it would give this process's own lock back.
    mode = storage.status(path).st_mode
    if not stat.S_ISREG(mode):
        code = errno.ELOOP if stat.S_ISLNK(mode) else errno.EINVAL
        raise OSError(code, os.strerror(code), os.fspath(path))
    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))


def _why_unusable(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a link, and rear follows none here: remove it, or put what it leads to in its place"
    if error.errno == errno.ENOTDIR:
        return "is a file where a folder has to be: move it elsewhere"
    if error.errno == errno.EINVAL:
        return "is no regular file: move it elsewhere"
    advice = ": check its owner and mode" if error.errno in (errno.EACCES, errno.EPERM) else ""
    return f"cannot be looked at ({error.strerror or error}){advice}"


def shut_folder(layout: Layout, folder: Path, error: OSError) -> Refused:
    """Return the event that tells of a folder whose pairs cannot be looked at."""
    subject = folder.relative_to(layout.base).as_posix()
    return Refused(subject, f"it {_why_unusable(error)}; what is in it is left as it is")


def names_in(folder: Path, *, storage: Storage) -> list[str]:
    """Return what is in a folder of pairs; none, when it has just been removed.

    Raises:
        OSError: it is shut, or something else is in its place, in which there is nothing for a mere listing.
    """
    try:
        names = storage.names(folder)
        if not names:
            storage.look_into(folder)
    except OSError as error:
        # GlusterFS says ``ESTALE`` of one that another host has just removed.
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        return []
    return names


def hosts_in(layout: Layout, folder: Path, *, storage: Storage) -> Iterator[tuple[str, list[str]] | Refused]:
    """Yield the host folders in a folder with the names in each, or what there is to say of one that is shut."""
    try:
        hosts = list(filter(is_safe_component, names_in(folder, storage=storage)))
    except OSError as error:
        # Of its own parts a base tells once.
        if folder not in layout.parts:
            yield shut_folder(layout, folder, error)
        return
    for host in hosts:
        if is_litter(host):
            continue
        try:
            yield host, names_in(folder / host, storage=storage)
        except OSError as error:
            yield shut_folder(layout, folder / host, error)


def names_unless_shut(folder: Path, *, storage: Storage) -> list[str]:
    """Return what is in a folder that is tidied or counted; nothing, when it is shut: others tell of that."""
    with contextlib.suppress(OSError):
        return storage.names(folder)
    return []


def saved(observations: Observations) -> Iterator[Refused]:
    """Write down what was seen; without it no lease ends, so when that cannot be done, say so."""
    try:
        observations.save()
    except OSError as error:
        yield Refused(
            f"{STATE}/observations",
            f"what was seen cannot be written down: {error}; workers that cannot be seen from here are not taken over",
        )
