"""From temp archives to final archives: claim, check, plan, copy, commit, index, clear.

*scavenge* runs that under a *leader*; *claims* takes pairs; *pair_check* looks at them, with *second_copies*,
*flushed_files*, *rebuilt_journal* and *rescue*; *lost_and_found* takes what has no place. *plan* assigns all offsets,
*merge* writes in the order that docs/explanation/durability.md proves, *copy_tasks* and *check_tasks* run on an
executor; *recovery* undoes or redoes what a crash left, *rollover* ends full archives, *report* tells. *daemon* is
`scavengerd`.

Imports core, zip, salvage, journal, index and read.
"""
