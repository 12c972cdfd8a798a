"""One process that writes: `rear_fs`, `rear_open`, `rear_pickup`.

*fs* takes the calls; *member_file* and *text_member_file* are the files that it hands out, on a *spool_file*; *pickup*
takes files that others made. At close a member goes to the *worker*, which appends it by the *pair_writer* of one of
its *pairs*, keeps it until it is proven (*retained*), and syncs, beats and rolls over in the *background*, as its
*worker_options* say. What is flushed goes to a *flushed_file* in a *flushed_pair* of its own. *written_names* remembers
names for mode ``x``; *pools* is for other people's processes. Imports core, zip, journal, and read for mode ``r``.
"""
