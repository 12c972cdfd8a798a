"""What holds for all tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# An assertion in there shows its values, too.
pytest.register_assert_rewrite(*(path.stem for path in Path(__file__).with_name("support").glob("*.py")))

# A shell without job control lets what it starts in the background ignore SIGINT and SIGQUIT; then all programs that
# are started here would.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)
