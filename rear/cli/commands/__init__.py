"""One file a command of ``rear``, and nothing else: what it is given, its page of help, and the calls that it makes.

`rear.cli.app` puts them together. What several commands share lies above this folder, in `rear.cli.display` and in
`rear.cli.listing`.
"""
