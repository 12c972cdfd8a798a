"""Python's garbage collector, while many objects are made at once that are all kept."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def uncollected(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Make a function run without garbage collections: of a hundred thousand members that stay they find nothing.

    Not for generators: who asks them for more would run so, too.
    """

    @functools.wraps(function)
    def run(*args: _Parameters.args, **options: _Parameters.kwargs) -> _Result:
        if not gc.isenabled():
            return function(*args, **options)
        gc.disable()
        try:
            return function(*args, **options)
        finally:
            gc.enable()

    return run
