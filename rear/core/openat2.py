"""Linux's ``openat2``, which Python does not have: one call that opens a folder by a long path, and follows no link."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from typing import Final

#: The same on all architectures since 5.1; only Alpha counts otherwise.
_NUMBER: Final = 437
_RESOLVE_NO_SYMLINKS: Final = 0x04


def folder_opener(flags: int) -> Callable[[int, str], int | None] | None:
    """Return what opens a folder by its path below an open one, through no link; ``None`` where the kernel cannot.

    That gives a descriptor, or ``None`` of what it refuses, whatever for.

    Args:
        flags: as of `os.open`.
    """
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        call = ctypes.CDLL(None, use_errno=True).syscall
    except (ImportError, OSError, AttributeError):
        return None
    how = struct.pack("=QQQ", flags, 0, _RESOLVE_NO_SYMLINKS)
    call.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    call.restype = ctypes.c_long

    def open_folder(directory: int, path: str) -> int | None:
        descriptor = int(call(_NUMBER, directory, os.fsencode(path), how, len(how)))
        return descriptor if descriptor >= 0 else None

    root = os.open("/", flags & ~os.O_NOFOLLOW)
    try:
        # Kernels before 5.6, and containers that let only calls through that they know.
        probe = open_folder(root, ".")
        if probe is None:
            return None
        os.close(probe)
    finally:
        os.close(root)
    return open_folder
