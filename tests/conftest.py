"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell without job control lets what it starts in the background ignore Ctrl-C; then all programs started here would.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
