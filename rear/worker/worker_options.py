"""Settings of a worker: rotation, sync and lease; see `rear.rear_fs` for the meaning of each."""

from __future__ import annotations

import math

from rear.errors import UsageError

_BEATS_A_LEASE = 4


class WorkerOptions:
    """How a worker behaves.

    Raises:
        UsageError: an option has a value that cannot be used.
    """

    __slots__ = ("lease_seconds", "rotation_size", "rotation_span", "sync", "sync_interval")

    def __init__(
        self,
        rotation_span: float = 300.0,
        rotation_size: int = 1 << 30,
        sync: str = "interval",
        sync_interval: float = 1.0,
        lease_seconds: float = 60.0,
    ) -> None:
        self.rotation_span = rotation_span
        self.rotation_size = rotation_size
        self.sync = sync
        self.sync_interval = sync_interval
        self.lease_seconds = lease_seconds
        for name in ("rotation_span", "rotation_size", "sync_interval", "lease_seconds"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
                raise UsageError(f"{name} is {value!r}: it has to be a number greater than 0")
        if not math.isfinite(self.lease_seconds):
            raise UsageError(f"lease_seconds is {self.lease_seconds!r}: without an end, no one could ever take over")
        if self.sync not in ("interval", "file"):
            raise UsageError(f"sync is {self.sync!r}: it has to be 'interval' or 'file'")

    @property
    def syncs_each(self) -> bool:
        """Whether a member is on stable storage before it is acknowledged."""
        return self.sync == "file"

    @property
    def beat_seconds(self) -> float:
        """Between two beats."""
        return self.lease_seconds / _BEATS_A_LEASE
