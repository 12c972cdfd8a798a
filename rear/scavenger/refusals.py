"""One thing that is shut, or bad, costs itself alone: it is told by name as ``refused``, and the rest goes on.

Several users share a base, and each may shut what is hers. Who leads proves that it still does before it says so: to be
taken over makes files go missing as well, and a server that is down fails that too, and ends the scavenge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rear.core.layout import Layout
from rear.core.liveness import Observations
from rear.core.names import STATE, is_safe_component
from rear.core.records import Pair
from rear.core.storage import Storage
from rear.events import Refused


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


def shut_folder(layout: Layout, folder: Path, error: OSError) -> Refused:
    """Return the event that tells of a folder whose pairs cannot be looked at."""
    subject = folder.relative_to(layout.base).as_posix()
    return Refused(subject, f"this folder is shut: {error.strerror or error}; what is in it is left as it is")


def hosts_in(layout: Layout, folder: Path, *, storage: Storage) -> Iterator[tuple[str, list[str]] | Refused]:
    """Yield the host folders in a folder with the names in each, or what there is to say of one that is shut."""
    try:
        hosts = list(filter(is_safe_component, storage.names(folder)))
    except OSError as error:
        yield shut_folder(layout, folder, error)
        return
    for host in hosts:
        try:
            yield host, storage.names(folder / host)
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
