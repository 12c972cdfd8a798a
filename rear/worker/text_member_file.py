"""A member as a text file, and a member in any mode that writes, by the rules and words of ``open()``."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Final, NamedTuple, Self

from rear.errors import UsageError
from rear.worker import spool_file
from rear.worker.member_file import MemberFile, OpenFiles, warn_unclosed
from rear.worker.spool_file import do_nothing


class _Mode(NamedTuple):
    binary: bool
    readable: bool


_modes: Final[dict[str, _Mode]] = {}


def _parse_mode(mode: str) -> _Mode:
    """Return what a mode means, by the rules and in the words of ``open()``.

    Raises:
        UsageError: it means nothing, or reading or changing a file that exists.
    """
    if not isinstance(mode, str):
        raise TypeError(f"rear_open() argument 'mode' must be str, not {type(mode).__name__}")
    letters = set(mode)
    if letters - set("rwxabt+") or len(letters) != len(mode):
        raise UsageError(f"invalid mode: {mode!r}")
    if {"t", "b"} <= letters:
        raise UsageError("can't have text and binary mode at once")
    if len(letters & set("rwxa")) != 1:
        raise UsageError("must have exactly one of create/read/write/append mode")
    if letters & set("ra"):
        raise UsageError(
            f"mode {mode!r}: rear_open writes whole new files ('w' or 'x'), and reads what was written ('r')"
        )
    parsed = _modes[mode] = _Mode("b" in letters, "+" in letters)
    return parsed


def open_member(
    path: str,
    mode: str,
    owner: OpenFiles,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> MemberFile | TextMemberFile:
    """Return a new file for one member; ``mode`` and the options for text are those of ``open()``.

    Raises:
        UsageError: the mode means nothing, or the options do not go with it.
        LookupError: no such encoding or error handler.
    """
    parsed = _modes.get(mode) or _parse_mode(mode)
    if parsed.binary:
        for option, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
            if value is not None:
                raise UsageError(f"binary mode doesn't take {'an' if option[0] == 'e' else 'a'} {option} argument")
    member = MemberFile(path, mode, parsed.readable, owner)
    if parsed.binary:
        return member
    try:
        return TextMemberFile(member, encoding, errors, newline)
    except BaseException:
        member.forget()
        raise


_write: Final = io.TextIOWrapper.write


class TextMemberFile(io.TextIOWrapper):
    """A member as a text file; see `open_member`."""

    _member: MemberFile | None = None

    def __init__(self, member: MemberFile, encoding: str | None, errors: str | None, newline: str | None) -> None:
        # At once: text that waits to be written is lost when an exception comes in a write of the binary file.
        super().__init__(member, encoding, errors, newline, write_through=True)
        member.enclose(self)
        self._member = member

    @property
    def mode(self) -> str:
        """The mode as it was given."""
        return "" if self._member is None else self._member.mode

    def write(self, text: str, /) -> int:
        """Write text and return its length in characters."""
        member = self._member
        # Otherwise a forked child would learn of it only once some thousand characters are together.
        if member is not None and member.process is not spool_file.process:
            member.refuse_child()
        return _write(self, text)

    def tell(self) -> int:
        """Return the position, as a number that `seek` understands."""
        return self._quietly(super().tell)

    def seek(self, cookie: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a position that `tell` returned, to the start or to the end."""
        return self._quietly(lambda: super(TextMemberFile, self).seek(cookie, whence))

    def truncate(self, size: int | None = None, /) -> int:
        """Cut the file to ``size`` bytes, by default where it is, and return the size."""
        return self._quietly(lambda: super(TextMemberFile, self).truncate(size))

    def _quietly(self, call: Callable[[], int]) -> int:
        return call() if self._member is None else self._member.quietly(call)

    def close(self) -> None:
        """Archive the file, the first time. When its last characters cannot be written, it is discarded.

        Raises:
            OSError: see `MemberFile.close`.
        """
        member = self._member
        if member is None:
            return
        if member.closed:
            if member.is_abandoned:
                member.close()
            return
        if member.process is spool_file.process and not member.has_failed:
            try:
                member.quietly(super().flush)
            except BaseException:
                member.discard()
                raise
        member.text = None
        try:
            member.close()
        finally:
            self.__class__ = _EndedTextMemberFile

    def discard(self) -> None:
        """Drop the file: it will not be archived. Does nothing once it is closed."""
        if self._member is not None:
            self._member.discard()
            self.__class__ = _EndedTextMemberFile

    def detach(self) -> MemberFile:  # type: ignore[override]
        """Return the binary file, which goes on alone."""
        super().detach()
        member, self._member = self._member, None
        assert member is not None
        member.text = None
        return member

    def __enter__(self) -> Self:
        try:
            super().__enter__()
            if self._member is not None:
                self._member.is_entered = True
            return self
        except BaseException:
            # Nobody will leave what was not entered: an empty member must not come of it.
            self.discard()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._member is not None and self._member.owner.success_only:
            try:
                self.discard()
            except BaseException:
                self.discard()
                raise
        else:
            self.close()

    def __del__(self) -> None:
        member = self._member
        if member is not None and not member.closed:
            if member.process is spool_file.process:
                warn_unclosed(self, member)
            else:
                self.close()


class _EndedTextMemberFile(TextMemberFile):
    """What it becomes when it has ended: see `spool_file.do_nothing`."""

    __del__ = staticmethod(do_nothing)


_EndedTextMemberFile.__name__ = TextMemberFile.__name__
