"""Options of a scavenge: as given, and otherwise as the environment or the base's configuration says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypedDict, Unpack

from rear.core.config import load
from rear.core.layout import Layout
from rear.core.storage import LOCAL, Storage
from rear.errors import UsageError
from rear.scavenger.flushed_files import PartialPolicy
from rear.scavenger.plan import Conflict
from rear.scavenger.rollover import Cap

if TYPE_CHECKING:
    from concurrent.futures import Executor


@dataclass(frozen=True, slots=True)
class ScavengeOptions:
    """How to scavenge; see `scavenge` for the meaning of each."""

    verify: bool = False
    dry_run: bool = False
    flush: bool = False
    flush_wait_seconds: float = 30.0
    wait: bool = False
    on_conflict: Conflict = "rename"
    max_size: int | None = None
    max_members: int | None = None
    assume_dead: Sequence[str] = ()
    executor: Executor | None = None
    partial: PartialPolicy = "keep"
    archive_mode: str | None = None
    owner_only: bool = False

    def __post_init__(self) -> None:
        if self.on_conflict not in ("rename", "first", "last"):
            raise UsageError(f"on_conflict is {self.on_conflict!r}: it has to be 'rename', 'first' or 'last'")
        if self.partial not in ("keep", "drop"):
            raise UsageError(f"partial is {self.partial!r}: it has to be 'keep' or 'drop'")
        Cap(self.max_size, self.max_members)


class GivenOptions(TypedDict, total=False):
    """What a caller gives of `ScavengeOptions`; ``None`` for what others may say."""

    verify: bool | None
    dry_run: bool
    flush: bool
    flush_wait_seconds: float
    wait: bool
    on_conflict: Conflict | None
    max_size: int | None
    max_members: int | None
    assume_dead: Sequence[str]
    executor: Executor | None
    partial: PartialPolicy | None
    owner_only: bool


def options_for(layout: Layout, *, storage: Storage = LOCAL, **given: Unpack[GivenOptions]) -> ScavengeOptions:
    """Return options for a scavenge of a base: what is ``None`` is as the environment or the base's configuration says.

    Raises:
        UsageError: an option has a value that cannot be used.
        OSError: the base's configuration is there and cannot be read.
    """
    settings = load(layout, "scavenger", given, storage=storage)
    options = {field.name for field in fields(ScavengeOptions)}
    return ScavengeOptions(**{**given, **{name: value for name, value in settings.items() if name in options}})
