"""What comes from elsewhere: swept folders, adopted Zips, jobs.

*sweep* takes the files of a *source_tree* into an archive and removes them (*source_removal*) once they are among its
*held_members*; *adopt* brings in members of an *adopted_zip*, as *zip_payload*; *job* runs a command and keeps its
output. *merging* is the scavenge that belongs to them.

Imports every room above it but fsck.
"""
