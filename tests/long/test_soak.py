"""Everything at once for a while, by one seed; then every acknowledged file is there exactly once."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from faults import RecordProperty
from soak import report, soaked
from soak_judge import judge
from soak_program import digest_of
from zips import write_zip

SECONDS = float(os.environ.get("REAR_SOAK_SECONDS", "20"))
SEED = int(os.environ.get("REAR_SOAK_SEED", "20240229"))
#: What fits into a slice that others wait for; a real soak has members of tens of MB.
LARGE_BYTES = 40 << 20 if SECONDS > 60 else 12 << 20


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.timeout(int(3 * SECONDS) + 600)
def test_soak(record_property: RecordProperty) -> None:
    # Not tmp_path: pytest removes that after some runs, and what a failure leaves is to stay.
    folder = Path(tempfile.mkdtemp(prefix=f"rear-soak-{SEED}-"))
    with soaked(folder, SEED, SECONDS, large_bytes=LARGE_BYTES) as verdict:
        counts = verdict.counts
        record_property("crash_points", counts["SIGKILL"] + counts["SIGSTOP"])
        print(f"seed {SEED}, {SECONDS:g} s: {dict(counts)}")
        assert not verdict.faults, report(verdict, folder / "logs", SEED)
        # A soak in which nothing happens proves nothing.
        assert min(counts["kept"], counts["members"]) > 10 * SECONDS
        assert min(counts[what] for what in ("worker", "SIGKILL", "SIGSTOP")) > SECONDS / 10


def promise(logs: Path, identity: str, name: str, data: bytes, *, kind: str = "unique", what: str = "kept") -> None:
    about = {"archive": "ar.zip", "name": name, "digest": digest_of(data), "kind": kind}
    with (logs / "worker-1.promises").open("a") as log:
        print(json.dumps({"what": "begun", "id": identity, **about}), file=log)
        print(json.dumps({"what": what, "id": identity}), file=log)


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ({"ar.zip": {"a": b"a", "b~1": b"b"}}, None),
        ({"ar-0.zip": {"a": b"a"}, "ar.zip": {"b": b"b", "c": b"c"}}, None),
        ({"ar.zip": {"a": b"a"}}, "ar.zip/b was acknowledged, and is lost"),
        ({"ar.zip": {"a": b"", "b": b"b"}}, "nobody wrote a "),
        ({"ar.zip": {"a~1": b"a", "b": b"b"}}, "nobody wrote a~1"),
        ({"ar-0.zip": {"a": b"a"}, "ar.zip": {"a": b"a", "b": b"b"}}, "a is there 2 times"),
        ({"ar.zip": {"a": b"a", "b": b"b", "d": b"d"}}, "d was given up by its writer"),
        ({"other.zip": {"a": b"a"}, "ar.zip": {"b": b"b"}}, "ar.zip/a was acknowledged, and is lost"),
    ],
)
def test_the_judge(tmp_path: Path, members: dict[str, dict[str, bytes]], fault: str | None) -> None:
    logs, base = tmp_path / "logs", tmp_path / "base"
    logs.mkdir()
    base.mkdir()
    promise(logs, "1", "a", b"a")
    promise(logs, "2", "b", b"b", kind="conflict")
    promise(logs, "3", "c", b"c", what="failed")
    promise(logs, "4", "d", b"d", kind="discarded", what="failed")
    for archive, contents in members.items():
        write_zip(base / archive, contents)
    faults = judge(base, logs).faults
    if fault is None:
        assert faults == []
    else:
        assert any(fault in one for one in faults), faults
