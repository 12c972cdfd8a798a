"""Rows about archives whose writer died: no directory, no journal, the last member torn."""

from __future__ import annotations

from pathlib import Path

from bench import archives, data
from bench.archives import expect_members
from bench.runner import Bench, Command, Contender, Job, rear_command

#: Name of the case, number of members, their size. The last ones are tiny.
FULL = [("5,000", 5_000, 4096), ("50,000", 50_000, 4096), ("500,000", 500_000, 1024)]
QUICK = [("200", 200, 4096), ("2,000", 2_000, 4096)]
ZIP_FF = "zip -FF"


def salvage(bench: Bench) -> None:
    """What is whole of a Zip without directory goes into a new one: members of 4 KiB, of 1 KiB where there are 500,000.

    The last member is torn. ``rear`` checks every CRC, ``zip -FF`` none: it writes the torn one into the new archive.
    ``7z`` and ``bsdtar`` unpack into files; they and the whole command ``rear fsck`` take part once.
    """
    for method, number in (("stored", archives.STORED), ("deflated", archives.DEFLATED)):
        for label, count, size in QUICK if bench.is_quick else FULL:
            contenders = ["rear", ZIP_FF]
            if count == bench.size(50_000, 2_000):
                contenders += ["command", "7z", "bsdtar"]
            _compare(bench, f"{method}, {label}", count, size, number, contenders, x=count)


def salvage_tiny(bench: Bench) -> None:
    """The same with a million members of 32 bytes."""
    count = bench.size(1_000_000, 20_000)
    _compare(bench, f"stored, {count:,}", count, 32, archives.STORED, ["rear", ZIP_FF], x=None)


def _compare(
    bench: Bench, case: str, count: int, size: int, method: int, wanted: list[str], *, x: float | None
) -> None:
    name = f"torn {case}"

    def make(folder: Path) -> None:
        files = data.small_files(count, size_bytes=size)
        archives.write(folder / "torn.zip", files, method=method, torn=True)

    torn = bench.shared(name, make) / "torn.zip"
    yes = torn.with_name("yes")
    # zip -FF asks whether this is all there is.
    yes.write_text("y\n" * 100)
    contenders = {
        "rear": Contender(
            "rear",
            lambda folder: Job("bench.readers:salvage", {"source": str(torn), "target": str(folder / "new.zip")}),
            "rear",
            after=lambda folder: expect_members(folder / "new.zip", count - 1),
        ),
        "command": Contender(
            "rear fsck --output",
            lambda folder: rear_command(
                "fsck", "--quiet", "--output", str(folder / "new.zip"), str(torn), statuses=(1, 4)
            ),
            "rear",
            after=lambda folder: expect_members(folder / "new.zip", count - 1),
        ),
        ZIP_FF: Contender(
            ZIP_FF,
            lambda folder: Command(
                [bench.peer("zip").path, "-FF", str(torn), "--out", str(folder / "new.zip")],
                environment=bench.peer("zip").environment, statuses=(0, 3), stdin=yes,
            ),
            # The torn member is there, too, unless it is tiny.
            after=lambda folder: expect_members(folder / "new.zip", count, tolerated=1),
            needs="zip",
        ),
        "7z": Contender(
            "7z x",
            lambda folder: Command(
                [bench.peer("7z").path, "x", "-y", "-bd", f"-o{folder}/out", str(torn)],
                environment=bench.peer("7z").environment, statuses=(0, 1, 2),
            ),
            needs="7z",
        ),
        "bsdtar": Contender(
            "bsdtar -x",
            lambda folder: Command(
                [bench.peer("bsdtar").path, "-xf", str(torn), "-C", str(folder)],
                environment=bench.peer("bsdtar").environment, statuses=(0, 1),
            ),
            needs="bsdtar",
        ),
    }  # fmt: skip
    bench.compare(case, [contenders[each] for each in wanted], x=x, rounds=2)
    bench.forget(name)
