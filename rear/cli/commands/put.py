"""``rear put``: files and streams into an archive, for whoever writes no Python."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rear.cli.exit import report, say
from rear.cli.options import Compression, EscapeNames, Meta, OneFileSystem, Quiet, flag
from rear.cli.standard_streams import read_input
from rear.cli.targets import metadata_of, place_of
from rear.core.escaped_names import escape_path, member_folder
from rear.core.text import counted
from rear.errors import NotArchivedError, PathError, RearError, SourceError, UsageError

if TYPE_CHECKING:
    from rear.core.records import Metadata
    from rear.worker.fs import RearFs

_STREAM: Final = "-"
_PIECE_BYTES: Final = 1 << 20
_NAMED_LIMIT: Final = 20


def put(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Files, and directories with -r; '-' is standard input.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="BASE/ar.zip/NAME, or BASE/ar.zip/FOLDER/, or BASE/ar.zip.")
    ],
    base: Annotated[
        str | None,
        typer.Option(
            envvar="REAR_BASE",
            metavar="BASE",
            show_default=False,
            help="The base; TARGET is relative to it. Made if it is missing. Without it TARGET lies below a base.",
        ),
    ] = None,
    recursive: Annotated[bool, flag("Directories too, with all below them.", "--recursive", "-r")] = False,
    move: Annotated[
        bool, flag("Remove each source once its bytes are on stable storage and were read back.", "--move")
    ] = False,
    escape_names: EscapeNames = False,
    one_file_system: OneFileSystem = False,
    meta: Meta = None,
    compression: Compression = None,
    quiet: Quiet = False,
) -> None:
    """Archive files or standard input like a worker; when it ends with 0, all of it survives a loss of power.

    Names are given as by cp: below TARGET when that ends in '/', is the archive itself, or there are several sources;
    otherwise TARGET is the member's name, or the directory's. Mtime and permission bits are kept. A scavenge merges.

    Example: rear put -r out log.txt /nfs/base/ar.zip/runs/7/

    Example: tar -c out | rear put - /nfs/base/ar.zip/db.sql
    """
    import rear

    status = 0

    def refuse(error: RearError | OSError) -> None:
        nonlocal status
        status = report(error)

    place = place_of(target, base)
    # Whatever is wrong with the target is said before anything is archived.
    archive, folder = member_folder(place.path, escape=escape_names)
    metadata = metadata_of(meta or [])
    jobs = list(_jobs(sources, place.path, is_root=not folder, recursive=recursive, refuse=refuse))
    acknowledged: list[str] = []
    try:
        with rear.rear_fs(place.base, compression=compression, success_only=True) as fs:
            for source, path in jobs:
                try:
                    if source == _STREAM:
                        target = escape_path(path) if escape_names else path
                        _put_stream(fs, target, metadata)
                        acknowledged.append(target)
                        continue
                    # A link that the user names means what it leads to; those below a directory are archived as links.
                    read = source if move else os.path.realpath(source)
                    pickup = fs.pickup(
                        read,
                        path,
                        metadata=metadata,
                        keep=not move,
                        on_refused=refuse,
                        escape_names=escape_names,
                        one_file_system=one_file_system,
                    )
                    try:
                        pickup.close()
                    finally:
                        acknowledged += [f"{archive}/{file.name}" for file in pickup.archived]
                except (SourceError, PathError, OSError) as error:
                    if isinstance(error, OSError) and not _is_of(error, source):
                        raise
                    status = report(error)
    except NotArchivedError:
        # It names those that are not safe.
        raise
    except BaseException:
        _tell(acknowledged)
        raise
    if status:
        _tell(acknowledged)
        raise typer.Exit(status)
    if not quiet:
        say(f"{counted(len(acknowledged), 'file')} archived in {place.base}")


def _jobs(
    sources: list[str], path: str, *, is_root: bool, recursive: bool, refuse: Callable[[RearError | OSError], None]
) -> Iterator[tuple[str, str]]:
    """Yield each source with the path of its member or folder; as `cp` names them."""
    is_folder = len(sources) > 1 or path.endswith("/") or is_root
    for source in sources:
        if source == _STREAM:
            if is_folder:
                raise UsageError("standard input needs a name: end the target with one, and name no other source")
            yield source, path
            continue
        try:
            os.stat(source)
        except FileNotFoundError:
            why = " is a link that leads nowhere" if os.path.islink(source) else ": there is no such file"
            refuse(SourceError(f"{source}{why}"))
            continue
        except OSError as error:
            refuse(error)
            continue
        if os.path.isdir(source) and not recursive:
            raise UsageError(f"{source} is a directory: name -r to archive what is below it; nothing was archived")
        name = os.path.basename(source.rstrip("/"))
        if not is_folder:
            yield source, path
        elif name not in ("", ".", ".."):
            yield source, f"{path.rstrip('/')}/{name}"
        else:
            yield source, f"{path.rstrip('/')}/" if is_root else path.rstrip("/")


def _put_stream(fs: RearFs, path: str, metadata: Metadata | None) -> None:
    with fs.open(path, "wb", metadata=metadata) as file:
        while piece := read_input(_PIECE_BYTES):
            file.write(piece)


def _is_of(error: OSError, source: str) -> bool:
    """Whether an error is one of reading a source; after any other one, further sources would fare no better."""
    if source == _STREAM or error.errno in (errno.ENOSPC, errno.EDQUOT):
        return False
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if not isinstance(cause.filename, str):
        return False
    root = os.path.realpath(source)
    return cause.filename in (root, source) or cause.filename.startswith((f"{root}/", f"{os.path.abspath(source)}/"))


def _tell(acknowledged: list[str]) -> None:
    """Say what is safe when not all is."""
    say(f"{counted(len(acknowledged), 'file')} archived before that" + (", and safe:" if acknowledged else ""))
    for path in acknowledged[:_NAMED_LIMIT]:
        say(f"  {path}")
    if len(acknowledged) > _NAMED_LIMIT:
        say(f"  … and {len(acknowledged) - _NAMED_LIMIT:,} more, in the order of their names")
