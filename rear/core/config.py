"""Settings that workers and scavengers of one base agree on: what they are, and where each value comes from.

What a caller gives comes first, then an environment variable (``REAR_SYNC``), then ``.rear/config.toml`` in the base,
then the default. The file is input from others: its size is bounded, and each value is checked. A key that is not
known is warned of, so that a key of a newer rear stops no older one. A value that makes no sense is refused before
anything is written: whoever wrote ``sync = "flie"`` meant a promise to be kept, and going on with the default would
break it silently.

Whoever may write into a base may have written the file. What names a program to run or to connect to is never taken
from it; what can cost others only from one that is private, and of the caller, root, or the owner of the base's folder.
What a stranger's file says beyond that is told, ignored, and stops nobody.
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Literal, NamedTuple

from rear.core.layout import Layout
from rear.core.log import warn
from rear.core.storage import LOCAL, Storage, opened
from rear.core.text import parse_seconds, parse_size_bytes
from rear.core.trust import is_private, is_trusted
from rear.errors import ConfigError, UsageError

SIZE_LIMIT_BYTES: Final = 64 << 10
_PASSING_ERRORS: Final = frozenset({errno.EIO, errno.ESTALE, errno.EINTR, errno.ENOTCONN, errno.ETIMEDOUT})
#: What somebody has made of the file.
_LASTING_ERRORS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.ELOOP, errno.ENXIO})
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_YES: Final = frozenset({"1", "true", "yes", "on"})
_NO: Final = frozenset({"0", "false", "no", "off"})
_MODE: Final = re.compile("0?([0-7]{3})")
_HINT: Final = "that counts only from a file that nobody but you, root or the owner of the base's folder may write"

Source = Literal["any", "owner", "caller"]
"""Whose word on a setting counts: also that of a file which others may have written; of one that is private, and of the
caller, root or the owner of the base's folder; of the command line and the environment alone."""

_told: set[str] = set()


class Setting(NamedTuple):
    """One setting.

    Attributes:
        table: of the file that has it: ``worker`` or ``scavenger``.
        name: in the file and in Python; the variable is ``REAR_`` and this in capitals.
        default: when nobody says anything; ``None`` for none.
        read: makes a value of what the file or a variable says, or raises `UsageError`.
        meaning: for people.
        counts_from: whose word on it counts.
    """

    table: str
    name: str
    default: Any
    read: Callable[[object], Any]
    meaning: str
    counts_from: Source = "owner"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"REAR_{self.name.upper()}"


class Value(NamedTuple):
    """What a setting is, and where that comes from: ``default``, a variable, or the file and its line."""

    setting: Setting
    value: Any
    source: str


def _seconds(value: object) -> float:
    seconds = parse_seconds(value) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise UsageError(f"{value!r} is no duration: it has to be a number of seconds greater than 0, or as '5m'")
    return float(seconds)


def _size(least: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        size = parse_size_bytes(value) if isinstance(value, str) and value.strip() != "0" else value
        size = 0 if size == "0" else size
        if type(size) is not int or size < least:
            raise UsageError(f"{value!r} is no size: it has to be a number of bytes, {least} or more, or as '500M'")
        return size

    return read


def _count(value: object) -> int:
    count = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if type(count) is not int or count < 1:
        raise UsageError(f"{value!r} is no number, 1 or more")
    return count


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    if text not in _YES | _NO:
        raise UsageError(f"{value!r} is neither true nor false")
    return text in _YES


def _one_of(*choices: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in choices:
            raise UsageError(f"{value!r} is none of {', '.join(choices)}")
        return str(value)

    return read


def _mode(value: object) -> str:
    found = _MODE.fullmatch(value) if isinstance(value, str) else None
    if found is None or int(found[1], 8) & ~0o666 or int(found[1], 8) & 0o600 != 0o600:
        raise UsageError(f"{value!r} is no mode of an archive: it has to be octal text such as '0640'")
    return f"0{found[1]}"


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise UsageError(f"{value!r:.80} is no text")
    return value


SETTINGS: Final = (
    Setting("worker", "rotation_span", 300.0, _seconds, "a new temp archive begins after so long, at the latest"),
    Setting("worker", "rotation_size", 1 << 30, _size(1), "a new temp archive begins after so many bytes"),
    Setting("worker", "compression", "deflate", _one_of("deflate", "stored", "zstd"), "how members are compressed"),
    Setting("worker", "sync", "interval", _one_of("interval", "file"), "when a closed file survives power loss", "any"),
    Setting("worker", "sync_interval", 1.0, _seconds, "seconds between two syncs"),
    Setting("worker", "lease_seconds", 60.0, _seconds, "others may take over after so long without a sign of life"),
    Setting("worker", "spool_size", 8 << 20, _size(0), "bytes of one file that stay in memory"),
    Setting("scavenger", "verify", False, _flag, "read and check every member before the merge, and after it", "any"),
    Setting("scavenger", "on_conflict", "rename", _one_of("rename", "first", "last"), "members of one name"),
    Setting("scavenger", "partial", "keep", _one_of("keep", "drop"), "flushed files whose writer died"),
    Setting("scavenger", "max_size", None, _size(1), "a final archive is renamed before it has more bytes"),
    Setting("scavenger", "max_members", None, _count, "a final archive is renamed before it has more members"),
    Setting("scavenger", "archive_mode", None, _mode, "mode of final archives, whatever that of the temp archives is"),
    Setting("scavenger", "jobs", 1, _count, "processes that check and copy"),
    Setting("scavenger", "dask", None, _text, "address of a Dask scheduler whose workers check and copy", "caller"),
)
_TABLES: Final = frozenset(setting.table for setting in SETTINGS)


class Config:
    """The settings of one base.

    Args:
        layout: the base; it need not exist.
        storage: the file system.
        environment: the variables.

    Attributes:
        unknown: what the file has that this version does not know, each with file and line.
        ignored: what it says that does not count, each with file and line.

    Raises:
        ConfigError: the file is no TOML, or too large, and not a stranger's.
        OSError: so it is that it is there and cannot be read.
    """

    def __init__(
        self, layout: Layout, *, storage: Storage = LOCAL, environment: Mapping[str, str] | None = None
    ) -> None:
        self.path = os.fspath(layout.config)
        self._environment = os.environ if environment is None else environment
        self._text = ""
        self._tables: dict[str, dict[str, Any]] = {}
        self._is_trusted = True
        self._ignored: dict[str, str] = {}
        try:
            self._load(layout, storage)
        except (ConfigError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _LASTING_ERRORS:
                raise
            if self._may_stop(layout):
                raise
            self._text, self._tables = "", {}
            self._ignored[""] = f"{self.path}: all of it is ignored: {_reason(error)}; and others may have written it"
        self.unknown = self._unknown()
        self.ignored = list(self._ignored.values())

    def _load(self, layout: Layout, storage: Storage) -> None:
        self._text, status = _read(self.path, storage)
        if status is None:
            return
        self._is_trusted = _may_be_followed(status, layout)
        self._tables = _parse(self._text, self.path) if self._text else {}
        for setting in SETTINGS:
            if setting.name in self._tables.get(setting.table, {}) and (reason := self._why_ignored(setting)):
                where = self._where(setting.table, setting.name)
                self._ignored[setting.name] = f"{where}: {setting.name} is ignored: {reason}"

    def _may_stop(self, layout: Layout) -> bool:
        """Whether a file that cannot be used stops all: not a stranger's."""
        try:
            return _may_be_followed(os.lstat(self.path), layout)
        except OSError:
            return True

    def _why_ignored(self, setting: Setting) -> str:
        if setting.counts_from == "caller":
            return f"only {setting.variable} or --{setting.name}"
        if self._is_trusted:
            return ""
        if setting.counts_from == "owner":
            return _HINT
        try:
            setting.read(self._tables[setting.table][setting.name])
        except UsageError as error:
            # A stranger's slip stops nobody.
            return str(error)
        return ""

    def values(self, table: str | None = None) -> list[Value]:
        """Return all settings, or those of one table.

        Raises:
            ConfigError: a value makes no sense; the message names where it stands.
        """
        return [self._value(setting) for setting in SETTINGS if table in (None, setting.table)]

    def resolve(self, table: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of each setting of a table, by name: the given one unless that is ``None``.

        Raises:
            ConfigError: a value that is asked for makes no sense.
        """
        return {
            setting.name: self._value(setting).value if given.get(setting.name) is None else given[setting.name]
            for setting in SETTINGS
            if setting.table == table
        }

    def _value(self, setting: Setting) -> Value:
        text = self._environment.get(setting.variable)
        if text:
            return Value(setting, _checked(setting, text, setting.variable), setting.variable)
        table = self._tables.get(setting.table, {})
        if setting.name not in table or setting.name in self._ignored:
            return Value(setting, setting.default, "default")
        source = self._where(setting.table, setting.name)
        return Value(setting, _checked(setting, table[setting.name], source), source)

    def _unknown(self) -> list[str]:
        known = {(setting.table, setting.name) for setting in SETTINGS}
        found = [(name, "") for name in self._tables if name not in _TABLES]
        found += [(table, name) for table in _TABLES & self._tables.keys() for name in self._tables[table]]
        return [
            f"{self._where(table, name)}: {_shown(f'{table}.{name}' if name else table)} is no setting; it is ignored"
            for table, name in sorted(found)
            if (table, name) not in known
        ]

    def _where(self, table: str, name: str) -> str:
        """Return the file with the line of a key, as far as a simple look finds it."""
        inside = False
        for number, line in enumerate(self._text.splitlines(), 1):
            head = re.match(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]", line)
            inside = head[1] == table if head else inside
            is_key = re.match(rf"\s*{re.escape(name)}\s*=", line) if name else None
            is_dotted = re.match(rf"\s*{re.escape(table)}\s*\.\s*{re.escape(name)}\s*=", line) if name else None
            is_table = not name and (inside or re.match(rf"\s*{re.escape(table)}\s*=", line))
            if (inside and is_key) or is_dotted or is_table:
                return f"{self.path}, line {number}"
        return self.path


def load(layout: Layout, table: str, given: Mapping[str, Any], *, storage: Storage = LOCAL) -> dict[str, Any]:
    """Return the settings of a table for a base, and warn in the program's log, once, of what does not count.

    Args:
        layout: the base; it need not exist.
        table: ``worker`` or ``scavenger``.
        given: what the caller says, by name; ``None`` for nothing.
        storage: the file system.

    Raises:
        ConfigError: a value or the file makes no sense.
        OSError: the file is there and cannot be read.
    """
    config = Config(layout, storage=storage)
    for line in (*config.unknown, *config.ignored):
        if line not in _told:
            _told.add(line)
            warn("%s", line)
    return config.resolve(table, given)


def _checked(setting: Setting, value: object, source: str) -> Any:
    try:
        return setting.read(value)
    except UsageError as error:
        raise ConfigError(f"{source}: {setting.name}: {error}") from None


def _shown(name: str) -> str:
    return name if all(map(_KEY.match, name.split("."))) else repr(name)[:80]


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _may_be_followed(status: os.stat_result, layout: Layout) -> bool:
    """Whether only a user who may cost others something can have written a file of settings."""
    base = None
    with suppress(OSError):
        base = os.stat(layout.base)
    # A link has no mode of its own.
    return is_trusted(status, base) and (stat.S_ISLNK(status.st_mode) or is_private(status))


def _read(path: str, storage: Storage) -> tuple[str, os.stat_result | None]:
    """Return what the file says, and its status; ``None`` where there is none."""

    def read() -> tuple[bytes, os.stat_result]:
        with opened(path, storage) as descriptor:
            return storage.read(descriptor, SIZE_LIMIT_BYTES + 1, 0), os.fstat(descriptor)

    try:
        try:
            data, status = read()
        except OSError as error:
            if error.errno not in _PASSING_ERRORS:
                raise
            # A busy server: thousands of workers may have begun at once.
            data, status = read()
    except (FileNotFoundError, NotADirectoryError):
        return "", None
    except PermissionError as error:
        if os.access(state := os.path.dirname(path), os.X_OK):
            raise
        # Whether there is such a file cannot even be seen.
        raise PermissionError(error.errno, error.strerror, state) from None
    if len(data) > SIZE_LIMIT_BYTES:
        raise ConfigError(f"{path}: it is longer than {SIZE_LIMIT_BYTES:,} bytes: that is no configuration of rear")
    try:
        return data.decode(), status
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: it is not text in UTF-8") from None


def _parse(text: str, path: str) -> dict[str, dict[str, Any]]:
    import tomllib

    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: it is no TOML: {error}") from None
    for name in _TABLES & tables.keys():
        if not isinstance(tables[name], dict):
            raise ConfigError(f"{path}: {name} has to be a table: write [{name}] on a line of its own")
    return tables
