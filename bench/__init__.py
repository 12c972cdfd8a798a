"""Benchmarks of rear beside what one would use instead, and beside what the machine can do: ``python -m bench --help``.

Read the ratios: absolute times differ from machine to machine and from day to day. The rows are explained in
``docs/explanation/performance.md``. In the order in which one runs:

    __main__     options; chooses rows
    peers        the other programs: found, downloaded into a cache folder, or named as missing
    runner       runs contenders in turns, each in a process of its own, and keeps what they took
    launcher     the small process that starts them
    job          the process around a contender that is Python
    data         what is written, from a fixed seed; archives makes it Zips
    results      what was measured, and its JSON; targets: what is aimed at; verdicts: what became of that
    report       tables, docs/explanation/performance.md; plots draws
"""
