"""The command line: argv becomes calls of the library, its events and errors become text and an exit status."""

from __future__ import annotations


def main() -> None:
    """Run ``rear``; the process ends with the command's exit status."""
    from rear.cli.app import app

    app(prog_name="rear")


def scavenger_main() -> None:
    """Run ``rear-scavenger``, the name and options by which older programs call ``rear scavenge``."""
    from rear.cli.app import scavenger_app

    scavenger_app(prog_name="rear-scavenger")
