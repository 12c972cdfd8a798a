"""``rear doctor``: does this file system keep what rear relies on?"""

from __future__ import annotations

import json
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rear.cli.exit import ATTENTION
from rear.cli.options import JsonLines, base_argument, seconds, valued
from rear.cli.signals import Ended
from rear.core.text import shown
from rear.diagnostics.findings import JSON_VERSION

if TYPE_CHECKING:
    from rear.diagnostics.findings import Finding

_STYLES: Final = {"ok": "green", "degraded": "yellow", "broken": "bold red", "not checked": "dim"}
_STATUS_WIDTH: Final = len("not checked")
_PROBE_WIDTH: Final = len("append_and_read_back")


def doctor(
    base: Annotated[str, base_argument("The directory that the workers write to, or are to write to.")] = ".",
    peer: Annotated[
        str | None,
        valued(
            "OTHER_MOUNT",
            "The same directory through another mount of the same export: locks, races and delays are tried "
            "across both.",
        ),
    ] = None,
    peer_wait: Annotated[str, valued("DURATION", "How long to wait for what the other mount has to show.")] = "60s",
    as_json: JsonLines = False,
) -> None:
    """Try whether a file system keeps what rear relies on, and say what rear does where it does not.

    Works in a new folder of its own, and removes it again. The status is 1 when a promise of rear does not hold there.

    Example: rear doctor /nfs/base --peer /mnt/second/base
    """
    from rear.diagnostics.doctor import examine

    display: _Json | _Lines = _Json() if as_json else _Lines()
    limit_seconds = seconds(peer_wait)
    findings = examine(base, peer=peer, visibility_limit_seconds=limit_seconds, progress=display.progress)
    try:
        with display, closing(findings):
            for finding in findings:
                display.show(finding)
    except Ended as end:
        # Without a word: the folder is removed, and there is nothing to go on with.
        raise typer.Exit(128 + end.number) from None
    display.finish()
    raise typer.Exit(ATTENTION if display.counts["broken"] else 0)


class _Json(nullcontext[None]):
    """Findings for programs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = dict.fromkeys(_STYLES, 0)

    def progress(self, probe: str) -> None:
        """A probe begins."""

    def show(self, finding: Finding) -> None:
        """A probe has ended."""
        self.counts[finding.status] += 1
        print(json.dumps(finding.as_json(), ensure_ascii=True), flush=True)

    def finish(self) -> None:
        """That was all."""
        totals = {status.replace(" ", "_"): count for status, count in self.counts.items()}
        print(json.dumps({"version": JSON_VERSION, "kind": "finished", **totals}), flush=True)


class _Lines:
    """Findings for people: a table that grows while it runs, or a line each where nobody watches."""

    def __init__(self) -> None:
        from rich.console import Console

        self.counts = dict.fromkeys(_STYLES, 0)
        self._console = Console(highlight=False)
        self._status = self._console.status("")

    def __enter__(self) -> None:
        if self._console.is_terminal:
            self._status.start()

    def __exit__(self, *exc_info: object) -> None:
        self._status.stop()

    def progress(self, probe: str) -> None:
        """A probe begins: if the file system hangs, this is what is seen."""
        self._status.update(probe)

    def show(self, finding: Finding) -> None:
        """A probe has ended."""
        self.counts[finding.status] += 1
        effect = finding.effect if finding.status != "ok" else ""
        if self._console.is_terminal:
            self._print_row(finding, effect)
        else:
            line = f"{finding.status:<{_STATUS_WIDTH}}  {finding.probe:<{_PROBE_WIDTH}}  {shown(finding.seen)}"
            self._print(f"{line}{'; ' if effect else ''}{shown(effect)}", "")

    def _print_row(self, finding: Finding, effect: str) -> None:
        from rich.table import Table
        from rich.text import Text

        # One table a row, all of one shape: a row is shown when it is known.
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_column(width=_STATUS_WIDTH, no_wrap=True)
        row.add_column(width=_PROBE_WIDTH, no_wrap=True)
        row.add_column(ratio=1, overflow="fold")
        text = Text(shown(finding.seen))
        if effect:
            text.append(f"\n{shown(effect)}", style="dim")
        row.add_row(Text(finding.status, style=_STYLES[finding.status]), finding.probe, text)
        self._console.print(row)

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style), soft_wrap=not self._console.is_terminal)

    def finish(self) -> None:
        """That was all."""
        totals = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count)
        verdict = (
            "a promise of rear does not hold here: see what is broken"
            if self.counts["broken"]
            else "all that was checked is there"
        )
        self._print(f"{totals}: {verdict}", "bold red" if self.counts["broken"] else "bold")
