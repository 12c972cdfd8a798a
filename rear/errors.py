"""Errors that rear raises on purpose.

    RearError                      exit status 1
    ├── UsageError                 2   the caller asked for something that cannot be (also a ValueError)
    │   ├── PathError              2   a target path that names no archive, no member, or leaves the base
    │   ├── ConfigError            2   a setting in the environment or in the base's config.toml makes no sense
    │   └── NoContextError         2   rear_open or rear_pickup outside any rear_fs (also a RuntimeError)
    ├── BaseError                  3   the base is missing, is a file, or may not be entered
    ├── FormatError                4   bytes on disk are not what their format promises
    │   ├── ZipFormatError         4   … of a Zip file
    │   │   └── NotAZipError       4   no end of central directory record that describes this file
    │   ├── JournalError           4   … of a journal, an intent or another file of records
    │   │   ├── FutureVersionError 4   written by a newer rear: left untouched
    │   │   └── UnfinishedIntentError 4  its writer died before it began to change the archive
    │   └── IndexFormatError       4   … of an index segment
    ├── UnsupportedError           5   well formed, but needs what this installation lacks
    ├── MemberNotFoundError        6   no such member in the archive (also a KeyError)
    ├── SourceError                7   a pickup's source is missing, is no regular file, or changed while it was read
    ├── ExtractionError            8   a member was not written to disk: unsafe name, or something is there already
    ├── NotLeaderError             0   another scavenger leads this base: nothing to do; 1 when that is not certain
    └── NotArchivedError           9   acknowledged members could not be proven on stable storage

I/O errors stay what the operating system calls them: ``OSError`` with the path that was meant. At the command line they
end with status 3, an interrupt with 130, a closed pipe with 141, and a scavenge that had to report a loss, or to leave
something as it is, with 1.
"""

from __future__ import annotations

from typing import Literal

Lack = Literal["volumes", "encryption", "codec", "program"]


class RearError(Exception):
    """Base of every error that rear raises on purpose; ``exit_status`` is what the command line ends with."""

    exit_status: int = 1


class UsageError(RearError, ValueError):
    """An argument has a value that cannot be used; nothing was changed."""

    exit_status = 2


class PathError(UsageError):
    """A target path names no archive, names no member, or would leave the base."""


class ConfigError(UsageError):
    """A setting in the environment or in ``.rear/config.toml`` has a value that cannot be used."""


class NoContextError(UsageError, RuntimeError):
    """``rear_open`` or ``rear_pickup`` was called outside any ``rear_fs``."""


class BaseError(RearError):
    """The base does not exist, is not a directory, or may not be used."""

    exit_status = 3


class FormatError(RearError, ValueError):
    """Bytes on disk are not what their format promises."""

    exit_status = 4


class ZipFormatError(FormatError):
    """A Zip structure is damaged or contradicts another one; ``what`` says so without the archive's path."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(f"{path}: {what}" if path else what)
        self.what = what


class NotAZipError(ZipFormatError):
    """A file has no end of central directory record that describes it."""


class JournalError(FormatError):
    """A journal, an intent or another file of records cannot be understood."""


class FutureVersionError(JournalError):
    """A file was written by a newer rear; it is left untouched."""


class UnfinishedIntentError(JournalError):
    """An intent was never finished, so the archive that it names was not touched."""


class IndexFormatError(FormatError):
    """An index segment has another schema than this version knows."""


class UnsupportedError(RearError):
    """The data is well formed, but needs a codec or a feature that is not there; ``code`` says what is lacking."""

    exit_status = 5

    def __init__(self, message: str, code: Lack = "codec") -> None:
        super().__init__(message)
        self.code: Lack = code


class MemberNotFoundError(RearError, KeyError):
    """The archive has no member of that name."""

    exit_status = 6

    def __str__(self) -> str:
        # KeyError would show the repr of the message.
        return Exception.__str__(self)


class SourceError(RearError):
    """The source of a pickup is missing, is not a regular file, or changed while it was read; it was left in place."""

    exit_status = 7


class ExtractionError(RearError):
    """A member was not extracted: its name is unsafe, or something is in its place already."""

    exit_status = 8


class NotLeaderError(RearError):
    """Another scavenger leads this base, or may still do so.

    Attributes:
        situation: the message without the advice at its end.
        wait_seconds: after so long without a sign of life that other one counts as dead; ``None`` where it is seen to
            lead: then there is nothing to do, and the exit status is 0.
    """

    exit_status = 0

    def __init__(self, situation: str, advice: str = "", wait_seconds: float | None = None) -> None:
        super().__init__(f"{situation}: {advice}" if advice else situation)
        self.situation = situation
        self.wait_seconds = wait_seconds
        if wait_seconds is not None:
            self.exit_status = 1


class NotArchivedError(RearError):
    """Members that were acknowledged could not be proven on stable storage; they are listed by name."""

    exit_status = 9
