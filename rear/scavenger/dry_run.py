"""A dry run: what a scavenge would merge now, found out without changing anything (``rear scavenge --dry-run``)."""

from __future__ import annotations

from collections.abc import Iterator

from rear.core.layout import Layout
from rear.core.liveness import Liveness
from rear.core.records import Pair
from rear.core.storage import Storage
from rear.errors import RearError
from rear.events import Claimed, Event, Planned, Refused
from rear.index.index import Index
from rear.scavenger.claims import Orphan
from rear.scavenger.final_archive import Comparison, DirectoryNames, IndexedNames, NoNames, open_final_archive
from rear.scavenger.inbox import Inbox
from rear.scavenger.owners import Owners
from rear.scavenger.plan import Candidate, Conflict, make_plan, planned
from rear.scavenger.refusals import unusable_parts


def preview(
    layout: Layout, *, on_conflict: Conflict, liveness: Liveness, owners: Owners, storage: Storage
) -> Iterator[Event]:
    """Yield what would be claimed, left alone and merged; members are taken at their journal's word."""
    yield from unusable_parts(layout, storage=storage)
    inbox = Inbox(layout, liveness=liveness, owners=owners, storage=storage)
    by_archive: dict[str, list[Candidate]] = {}
    for item in inbox.waiting(remember=False):
        peeked = inbox.peek(item) if isinstance(item, Pair) else item
        if isinstance(peeked, Orphan):
            reason = f"{peeked.reason}; a scavenge would look for its members in the temp archive itself"
            peeked = Refused(str(peeked.pair), reason)
        if isinstance(peeked, Event):
            yield peeked
            continue
        pending = peeked.journal.pending()
        yield Claimed(str(peeked.pair), peeked.state, len(pending), sum(append.length for append in pending))
        for append in pending:
            by_archive.setdefault(append.archive, []).append(Candidate(peeked, append))
    for archive, candidates in by_archive.items():
        try:
            yield _plan(layout, archive, candidates, on_conflict, storage)
        except (RearError, OSError) as error:
            yield Refused(archive, str(error))


def _plan(
    layout: Layout, archive: str, candidates: list[Candidate], on_conflict: Conflict, storage: Storage
) -> Planned:
    with open_final_archive(layout, archive, storage=storage, write=False) as target:
        index = Index.open(layout, archive, storage=storage)
        names: IndexedNames | DirectoryNames | NoNames
        if target.descriptor is None:
            names = NoNames()
        elif target.is_mirrored_by(index, storage=storage):
            names = IndexedNames(index)
        else:
            # No index is made here, so the directory itself is asked.
            names = DirectoryNames(target, storage)
        comparison = Comparison(target, storage)
        return planned(
            make_plan(
                archive, target.directory, candidates, names=names, same_content=comparison, on_conflict=on_conflict
            )
        )
