"""The Zip format, and one archive, whoever made it; knows no base, no journal and no merge.

*structures* has the APPNOTE's numbers; *headers*, *extra_fields* and *origin* turn bytes into values and back;
*directory* finds a central directory and walks it; *archive* is one that is open; *member_ends* says where its members
end, and whether header and entry agree. *codecs* compress and decompress, *member_data* reads members, *payload* is one
to be written, *window* a piece of a file in memory, *extraction* brings members to a folder.

Imports core; any room below may import it.
"""
