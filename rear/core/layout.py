"""Every path under a base is built and taken apart here, and nowhere else.

Two kinds of names come in: *targets* that users write (``runs/7/ar.zip/logs/a.txt``) and file names that other
processes left in the base. Both are checked before they become a path, so that no name leaves the base.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from itertools import islice
from pathlib import Path

from rear.core.descent import is_folder, know_base
from rear.core.discovery import counts_as_base, name_base
from rear.core.names import STATE, check_archive, is_safe_component
from rear.core.records import Pair
from rear.core.source_file import describe_kind
from rear.core.storage import Storage, StrPath
from rear.errors import BaseError, PathError

PAIR_SUFFIXES = ("journal", "zip", "merged")
"""Files of one pair. The journal is first: whoever renames it owns the pair."""

_LISTED_LIMIT = 100
"""So many names of a folder are looked at for what is in the place of an archive; a scavenger refuses the rest."""
_STEM = re.compile(r"(?P<worker>[0-9a-z]+(?:-[0-9a-z]+)+)-(?P<rotation>[0-9]{1,9})\Z")


def parse_pair(host: str, file_name: str) -> Pair | None:
    """Return the pair that ``<host>/<file_name>`` belongs to, or ``None`` when it is no file of a pair."""
    stem, dot, suffix = file_name.rpartition(".")
    found = _STEM.match(stem)
    if not dot or suffix not in PAIR_SUFFIXES or found is None or not is_safe_component(host):
        return None
    pair = Pair(host, found["worker"], int(found["rotation"]))
    return pair if pair.stem == stem else None


class Layout:
    """Paths of one base.

    Args:
        base: the directory on the shared file system; made absolute, links in it are kept.
    """

    def __init__(self, base: str | os.PathLike[str]) -> None:
        self.base = Path(os.path.abspath(base))
        know_base(str(self.base))
        self.state = self.base / STATE
        self.inbox = self.state / "inbox"
        self.claims = self.state / "claims"
        self.graveyard = self.state / "graveyard"
        self.intents = self.state / "intents"
        self.indexes = self.state / "index"
        self.observations = self.state / "observations"
        self.lost_and_found = self.state / "lost+found"
        self.flush_requests = self.state / "flush"
        self.lock = self.state / "lock"
        self.terms = self.state / "terms"
        self.reports = self.state / "reports"
        self.config = self.state / "config.toml"
        #: Without one of them no scavenge can be sure of anything; what the others are for can wait.
        self.essential = (self.lock, self.terms, self.inbox, self.claims, self.intents)
        self.optional = (
            self.graveyard, self.lost_and_found, self.indexes, self.observations, self.reports, self.flush_requests,
        )  # fmt: skip
        self.parts = (*self.essential, *self.optional)

    def archive(self, archive: str) -> Path:
        """Path of a final archive.

        Raises:
            PathError: `check_archive` refuses it.
        """
        check_archive(archive)
        return self.base / archive

    def temp_archive(self, pair: Pair) -> Path:
        """Path of a pair's temp archive while its worker owns it."""
        return self.inbox / pair.host / f"{pair.stem}.zip"

    def journal(self, pair: Pair) -> Path:
        """Path of a pair's journal while its worker owns it."""
        return self.inbox / pair.host / f"{pair.stem}.journal"

    def inbox_folder(self, pair: Pair) -> Path:
        """Folder of a pair that its worker owns, or that waits for a scavenger."""
        return self.inbox / pair.host

    def claim_folder(self, leader: str, pair: Pair) -> Path:
        """Folder into which ``leader`` moves a pair that it claims."""
        return self.claims / leader / pair.host

    def graveyard_folder(self, pair: Pair) -> Path:
        """Folder in which a merged pair waits out its retention."""
        return self.graveyard / pair.host

    def index(self, archive: str) -> Path:
        """Folder of the index segments of a final archive."""
        check_archive(archive)
        return self.indexes / archive

    def intent(self, archive: str, leader: str = "") -> Path:
        """Path of the intent of a leader's merge into a final archive. All intents of one archive begin with the same
        stem.

        That is a digest, so that all intents are found by listing one folder; the intent itself names the archive. No
        other leader uses the name: what one does that was deposed without knowing must not hit the merge of its
        successor.
        """
        from hashlib import blake2b

        check_archive(archive)
        digest = blake2b(archive.encode(), digest_size=16).hexdigest()
        return self.intents / (f"{digest}-{leader}.intent" if leader else f"{digest}.intent")

    def observation(self, topic: str) -> Path:
        """Path of the file with signs of life, as seen; topics are ``workers``, ``graveyard``, ``leader``."""
        return self.observations / topic / "seen.json"


def is_directory(path: str | os.PathLike[str], *, anew: bool = False, follow: bool = True) -> bool:
    """Whether there is a directory; unlike `os.path.isdir` it does not take one that cannot be looked at for missing.

    Args:
        path: of the directory.
        anew: look into its folder before it counts as missing: NFS goes on saying so, for half a minute, of what it has
            once seen missing.
        follow: a link in its place; without it that is no directory.

    Raises:
        OSError: that cannot be found out, because a server is down or a folder may not be entered.
    """
    try:
        return stat.S_ISDIR(os.stat(path, follow_symlinks=follow).st_mode)
    except NotADirectoryError:
        return False
    except FileNotFoundError:
        folder, name = os.path.split(os.path.abspath(path))
        with suppress(OSError):
            return anew and name in os.listdir(folder) and is_directory(path, follow=follow)
        return False


def has_state(layout: Layout) -> bool:
    """Whether any worker has written to a base.

    Raises:
        BaseError: something else is where rear keeps its files.
        OSError: that cannot be found out.
    """
    if is_directory(layout.state, anew=True, follow=False):
        return True
    try:
        mode = os.lstat(layout.state).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        # Made just now.
        return True
    what = "is a link, and none is followed" if stat.S_ISLNK(mode) else "is a file where a folder has to be"
    raise BaseError(f"{layout.state} {what}: move it elsewhere, and bring the folder back if there was one")


def make_in_base(base: Path | None, folder: Path, *, storage: Storage) -> None:
    """Make a folder in a base that was there: one that has gone meanwhile would come back to a place that is taken.

    Of ``None`` the base is made as well.

    Raises:
        OSError: that is not possible, or (``ENOENT``) the base is not there.
    """
    if is_folder(folder):
        return
    if base is not None:
        os.listdir(base)
    storage.make_directories(folder)


def find_base(archive_path: str | os.PathLike[str]) -> tuple[Layout, str] | None:
    """Return the base that a final archive belongs to and its path in it, or ``None`` for an archive of nobody.

    Only one that may count as such: see `rear.core.discovery`. The path in the base is one without links, as far as
    none leads out of it.
    """
    path = Path(os.path.abspath(archive_path))
    for folder in path.parents:
        if is_directory(folder / STATE, follow=False) and counts_as_base(folder, path):
            archive = path.relative_to(folder).as_posix()
            try:
                check_archive(archive)
            except PathError:
                return None
            layout = Layout(folder)
            with suppress(PathError):
                archive = without_links(layout, archive)
            return layout, archive
    return None


def look_anew(path: Path, *, storage: Storage) -> None:
    """Make this host's view of a file fresh: call it right before a file is opened for what it holds now.

    GlusterFS answers ``open``, ``fstat`` and reads from what it saw up to a second ago; a listing makes it ask.
    """
    storage.names(path.parent)


def without_links(layout: Layout, archive: str) -> str:
    """Return the path of an archive in its base without the links in that of its folder: for users who name it by some.

    What is written down is this one: then both names are one archive, and nobody has to follow a link later.

    Raises:
        PathError: `check_archive` refuses it, or a link leads out of the base, or into what rear keeps for itself.
    """
    path = layout.archive(archive)
    base = os.path.realpath(layout.base)
    folder = os.path.realpath(path.parent)
    if folder != base and not folder.startswith(base.rstrip("/") + "/"):
        raise PathError(f"{path} is outside of the base {base}: a link leads its folder to {folder}")
    state = os.path.realpath(layout.state)
    if folder == state or folder.startswith(f"{state}/"):
        raise PathError(f"{path} cannot be an archive: its folder leads to {folder}, which rear keeps for itself")
    return os.path.relpath(os.path.join(folder, path.name), base)


def check_inside(layout: Layout, path: Path) -> None:
    """Refuse a path that a symbolic link leads elsewhere, also within the base: a journal's word must not do that.

    Raises:
        PathError: the message says where it leads.
    """
    archive = path.relative_to(layout.base).as_posix()
    if (led := without_links(layout, archive)) != archive:
        raise PathError(f"{path} is not used: a link leads to {layout.base / led}; put a folder in place of the link")


def check_owner(layout: Layout, path: Path) -> None:
    """Refuse an archive outside of a base, or of another one: the nearest ``.rear`` above an archive owns it.

    Raises:
        PathError: a link leads elsewhere, or another base owns it; the message says where, or which.
        OSError: a folder cannot be looked at.
    """
    check_inside(layout, path)
    base, folder = Path(os.path.realpath(layout.base)), Path(os.path.realpath(path.parent))
    for owner in (folder, *folder.parents):
        if owner == base:
            return
        if is_directory(owner / STATE, follow=False) and counts_as_base(owner, path):
            raise PathError(f"{path} belongs to the base {owner}, not to {base}: write to it by that base")


def check_place(layout: Layout, archive: str) -> None:
    """Refuse an archive into which no scavenger could merge: what is acknowledged for it would wait for ever.

    Raises:
        PathError: another base owns it, a link leads out of the base, or what is there is no file, but a link or else.
        OSError: a folder cannot be looked at.
    """
    path = layout.archive(archive)
    check_owner(layout, path)
    try:
        # A look for its name, where it is missing, would make NFS go on saying so when a scavenger has made it.
        with os.scandir(path.parent) as items:
            item = next((item for item in islice(items, _LISTED_LIMIT) if item.name == path.name), None)
            mode = stat.S_IFREG if item is None else item.stat(follow_symlinks=False).st_mode
    except OSError as error:
        # A base that cannot be made is told of where it is made; most often the folder is not there yet.
        if error.errno == errno.ENOTDIR and os.path.isdir(layout.base):
            raise PathError(f"{path} cannot be an archive: a folder of its path is a file") from None
        return
    if not stat.S_ISREG(mode):
        raise PathError(f"{path} cannot be an archive: there is {describe_kind(mode)}")


def base_above(path: str) -> str | None:
    """Return the nearest base that a file or folder, given without links, lies in; it may be the folder itself."""
    for folder in (path, *map(str, Path(path).parents)):
        if os.path.isdir(os.path.join(folder, STATE)) and counts_as_base(folder, path):
            return folder
    return None


def state_above(path: str) -> str | None:
    """Return the base in whose own state, below ``.rear``, a file or folder lies that is given without links."""
    for folder in (path, *map(str, Path(path).parents)):
        above, name = os.path.split(folder)
        # Whosever it is: what is in it is no file to be archived.
        if name.casefold() == STATE and os.path.isdir(os.path.join(above, STATE)):
            return above
    return None


def layout_of(base: StrPath) -> Layout:
    """Return the layout of a base that is there, which its user has named.

    Raises:
        BaseError: it is not, or something else is where rear keeps its files.
        OSError: it cannot be looked at.
    """
    layout = Layout(base)
    if not is_directory(layout.base, anew=True):
        what = "is not a directory" if os.path.lexists(layout.base) else "does not exist"
        raise BaseError(f"{layout.base} {what}: name the base that the workers write to")
    name_base(layout.base)
    # Before anything in it is opened.
    has_state(layout)
    return layout
