"""What the commands that read share: ``ls``, ``find``, ``cat``, ``get``, ``index``.

*selection* says which archive and which members an argument means, and writes lines; *levels* makes folders of what
lies deeper; *member_lines*, *columns* and *tree* are three ways to show members; *pending* lists those on their way.
"""
