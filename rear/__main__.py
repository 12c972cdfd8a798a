"""``python -m rear``: the command line."""

from rear.cli import main

main()
