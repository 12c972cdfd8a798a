"""``python -m bench.scale`` prints the tables of docs/explanation/scale.md; ``--write PAGE`` renews them in that page.

Give it the costs of your own server. What the tables are made of: `bench.scalemodel`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.scalemodel import SERVER, Machine
from bench.scaletables import all_tables, written


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of docs/explanation/scale.md, or put them there."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=main.__doc__)
    add = partial(parser.add_argument, type=float, metavar="N")
    add("--members", type=int, default=10**9, help="files in all (default: %(default)s)")
    add("--call-ms", default=SERVER.call_seconds * 1e3, help="one metadata operation (default: %(default)s)")
    add("--sync-ms", default=SERVER.sync_seconds * 1e3, help="one fsync (default: %(default)s)")
    add("--megabytes-a-second", default=SERVER.bytes_a_second / 1e6, help="of the server (default: %(default)s)")
    add("--member-us", default=SERVER.member_seconds * 1e6, help="processor, one merged member (default: %(default)s)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into a page instead")
    options = parser.parse_args(arguments)
    machine = Machine(
        call_seconds=options.call_ms / 1e3, sync_seconds=options.sync_ms / 1e3,
        bytes_a_second=options.megabytes_a_second * 1e6, member_seconds=options.member_us / 1e6,
    )  # fmt: skip
    tables = all_tables(machine, options.members)
    if options.write is None:
        for table in tables:
            print(f"\n## {table.name}\n\n{table.markdown()}", end="")
    else:
        options.write.write_text(written(options.write.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    main()
