"""Archives and members for whoever asks: as committed, on their way, by name.

*view* opens an archive as it is committed, also during a merge; *members* gives members as files, also those that wait
in the inbox; *path* is `rear.Path`, *archive_tree* the archives below a folder, *patterns* what names are asked for by,
*find* looks through all archives of a base.

Imports core, zip, journal and index.
"""
