"""A temp archive and its journal on disk: written, read, compared.

*codec* makes lines of records and back, *writer* appends them, *reader* reads a file of them. *encoder* makes line,
local header and directory entry of a member in one go. *check* asks whether a temp archive holds what its journal says,
*flushed_parts* what is whole of a file that was flushed, *pending* which members are still on their way. *intent* is
the undo and redo record of one merge.

Imports core and zip.
"""
