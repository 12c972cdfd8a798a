"""Exit statuses: what each means, and which a command can end with; the page about them is made from this."""

from __future__ import annotations

from typing import Final

MEANINGS: Final[dict[int, str]] = {
    0: "done; also: nothing to do, another scavenger leads",
    1: "something needs attention: the table of commands says what",
    2: "wrong use: an option, a path, a name, a setting; nothing was changed",
    3: "the base is missing or is no directory; an error of the operating system",
    4: "bytes on disk are not what their format promises, or of a later version",
    5: "something is needed that is not installed or not supported (zstd, encryption, split archives)",
    6: "no such member",
    7: "a pickup's source is missing, no regular file, or changed while it was read",
    8: "a member was not extracted: unsafe name, or something is there already",
    9: "acknowledged files could not be proven on stable storage",
    126: "`rear run`: the command cannot be started",
    127: "`rear run`: there is no such command",
    129: "SIGHUP",
    130: "Ctrl-C",
    141: "standard output was closed: `rear ls | head`",
    143: "SIGTERM",
}
"""Of all commands but those that `COMMANDS` gives meanings of their own."""

ANYWHERE: Final = (2, 130, 141)
"""Any command may end with these."""

COMMANDS: Final[dict[str, dict[int, str]]] = {
    "scavenge": {
        0: "", 3: "", 5: "", 9: "",
        1: "a loss was reported, something was left as it is (`refused`), or a leader that cannot be seen from here may"
           " still live; with `--every`, in any of the scavenges",
    },
    "sweep": {0: "", 1: "as `rear scavenge`, or a source was refused", 3: "", 5: "",
              9: "the sources are in place: sweep again"},
    "adopt": {0: "", 1: "as `rear scavenge`, or a Zip or a member of it was refused", 3: "", 4: "", 5: "",
              9: "the Zips are in place: adopt again"},
    "put": {0: "all is archived, and on stable storage", 3: "", 5: "",
            7: "a source is missing, is no regular file, or changed while it was read", 9: "", 129: "", 143: ""},
    "run": {
        0: "the command ended with 0, and all is archived", 3: "",
        7: "the command ended with 0, and a file that it left could not be archived", 9: "",
        126: "the command cannot be started", 127: "there is no such command", 129: "", 143: "",
    },
    "find": {0: "also when nothing matches", 3: "", 4: "", 5: ""},
    "index": {0: "", 1: "with `--rebuild`: a scavenger is at work, the index was not made anew", 3: "", 4: "", 5: ""},
    "ls": {0: "", 3: "", 4: "", 5: "", 6: "nothing matches"},
    "cat": {0: "", 3: "", 4: "", 5: "", 6: ""},
    "get": {0: "", 3: "", 4: "", 5: "", 6: "", 8: ""},
    "fsck": {
        0: "clean", 1: "all that was found is repaired", 4: "something is left; with `-n`: would be repaired",
        8: "it could not run: no such base or archive, contradicting options, an error of the operating system",
    },
    "status": {0: "all is well", 1: "something [needs attention](../how-to/watch.md#what-needs-attention)", 3: ""},
    "doctor": {0: "", 1: "a promise of rear does not hold there", 3: "", 129: "", 143: ""},
    "config": {0: "", 3: ""},
    "demo": {0: "", 1: "something is not as it has to be", 3: ""},
}  # fmt: skip
"""By command: its statuses, with what one means there when that is more special than in `MEANINGS`."""


def of_command(name: str) -> dict[int, str]:
    """Return the statuses of a command with their meanings; those that stand nowhere may be any general one."""
    own = COMMANDS.get(name, dict.fromkeys(range(10), ""))
    numbers = sorted({*own, *ANYWHERE})
    return {number: own.get(number) or MEANINGS[number] for number in numbers}
