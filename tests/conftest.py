"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell without job control lets what it starts in the background ignore SIGINT and SIGQUIT; then all programs that
# are started here would.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)
