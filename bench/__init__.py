"""Benchmarks of rear against what one would use instead: ``python -m bench --help``.

They use rear's public API alone. Read the ratios: absolute times differ from machine to machine and from day to day.
"""
