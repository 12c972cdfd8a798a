"""Does a local header belong to this archive, or to a Zip that is a member of it?

The strongest evidence decides:

1. the cookie of the temp archive, when the caller knows it: members have it in their origin field (see
   ``docs/reference/format.md``);
2. the central directory, when the archive has one that describes it: a header that it does not list is no member's;
3. an archive of which the first member has an origin field was written by rear: behind damage, only a header with such
   a field is taken for a member's.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from rear.core.records import Origin
from rear.salvage.directory_evidence import DirectoryEvidence
from rear.zip.extra_fields import decode_name
from rear.zip.headers import CentralEntry, LocalHeader
from rear.zip.origin import check_origin, decode_origin
from rear.zip.structures import ORIGIN

_IDENTIFIER: Final = ORIGIN.to_bytes(2, "little")


Belonging = Literal["yes", "no", "maybe"]


class Belongs(NamedTuple):
    """The answer, and the evidence."""

    answer: Belonging
    origin: Origin | None
    entry: CentralEntry | None
    #: Why the name may be wrong.
    doubt: str


class Membership:
    """Tells members of an archive from those of a Zip inside it."""

    def __init__(self, cookie: int | None, evidence: DirectoryEvidence | None) -> None:
        self._cookie = cookie
        self._cookie_bytes = b"" if cookie is None else cookie.to_bytes(8, "little")
        self.evidence = evidence
        self._made_by_rear: bool | None = None

    def learn(self, origin: Origin | None) -> None:
        """Take note of the first member."""
        if self._made_by_rear is None:
            self._made_by_rear = origin is not None
            if origin is not None and self._cookie is None:
                self._cookie_bytes = origin.cookie.to_bytes(8, "little")

    def _has_field(self, extra: bytes) -> bool:
        """Tell whether there is an origin field, or what is left of one."""
        return _IDENTIFIER in extra or (bool(self._cookie_bytes) and self._cookie_bytes in extra)

    def entry_at(self, position: int) -> CentralEntry | None:
        """Return the directory entry of the member at ``position``; ask with growing positions."""
        evidence = self.evidence
        return evidence.at(position) if evidence is not None and evidence.is_believed else None

    @property
    def has_evidence(self) -> bool:
        """Whether anything but a header itself tells whether it belongs."""
        return self.evidence is not None or self._cookie is not None

    def is_clear(self, position: int, name: bytes, extra: bytes, header_bytes: bytes) -> tuple[bool, int | None]:
        """Tell, quickly, whether there is no doubt that an expected header belongs and is as it was written.

        With the answer comes the mode that rear's own field has, if there is one.
        """
        evidence = self.evidence
        if evidence is not None:
            entry = evidence.at(position) if evidence.is_believed else None
            if entry is None or entry.name_bytes != name:
                return False, None
        checked = None
        if self._has_field(extra):
            checked = check_origin(header_bytes, len(extra))
            if checked is None and (self._made_by_rear or self._cookie is not None):
                return False, None
        if self._cookie is not None and (checked is None or checked[0] != self._cookie):
            return False, None
        return True, None if checked is None else checked[1]

    def of(
        self, header: LocalHeader, header_bytes: bytes, *, entry: CentralEntry | None = None, is_expected: bool = False
    ) -> Belongs:
        """Tell whether a local header belongs to the archive; it is expected where the member before it ends."""
        extra = header.extra
        has_field = self._has_field(extra)
        origin = decode_origin(header_bytes) if has_field else None
        if self._cookie is not None:
            return self._by_cookie(extra, origin, entry, is_expected)
        doubt = ""
        if has_field and origin is None and self._made_by_rear:
            doubt = "its local header does not pass the checksum of its origin field"
        evidence = self.evidence
        if evidence is not None and evidence.is_believed:
            if entry is None:
                answer: Belonging = "maybe" if evidence.may_miss(header.name) else "no"
                return Belongs(answer, origin, None, doubt)
            return Belongs("yes", origin, entry, doubt or _name_differs(header, origin, entry))
        if self._made_by_rear and not has_field and not is_expected:
            return Belongs("no", None, None, doubt)
        return Belongs("maybe", origin, None, doubt)

    def _by_cookie(self, extra: bytes, origin: Origin | None, entry: CentralEntry | None, is_expected: bool) -> Belongs:
        if origin is not None:
            return Belongs("yes" if origin.cookie == self._cookie else "no", origin, entry, "")
        doubt = "its local header does not pass the checksum of its origin field"
        if entry is not None or self._cookie_bytes in extra:
            return Belongs("yes", None, entry, doubt)
        return Belongs("maybe" if is_expected else "no", None, None, doubt)


def _name_differs(header: LocalHeader, origin: Origin | None, entry: CentralEntry) -> str:
    if origin is not None or entry.name_bytes == header.name:
        return ""
    name = decode_name(header.name, header.flags, header.extra)
    return f"the local header names it {name!r:.200}, the central directory {entry.name!r:.200}"
