"""From temp archives to final archives: claim, check, plan, copy, commit, index, clear.

*scavenge* runs that under a *leader*, as its *options* say; *inbox* tells who has ended, *claims* takes pairs;
*pair_check* looks at them, with *second_copies*, *flushed_files*, *rebuilt_journal* and *rescue*; *lost_and_found*
takes what has no place. *final_archive* tells what is there, *plan* assigns names and offsets, *merge* orders what
*merge_writer* writes, as docs/explanation/durability.md proves; *copy_tasks* and *check_tasks* run on an executor.
*recovery* undoes or redoes what a crash left, *rollover* ends full archives, *report* tells. *daemon* is `scavengerd`,
*dry_run* changes nothing, *gc_pause* spares time. Imports core, zip, salvage, journal, index and read.
"""
