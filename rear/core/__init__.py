"""What all rooms stand on; it knows no Zip and no journal.

*storage* is the one seam to the filesystem and the clock. *layout* builds every path under a base, *names* checks what
names may be, *records* are the values that journals and headers carry. *config* reads settings, *context* knows the
innermost `rear_fs`, *liveness* who is alive, *parallel* runs tasks on an executor, *source_file* reads the files of
others. *problems* are what a check finds; *log* and *text* are for people.

Imports `rear.errors` and `rear.events` alone; any room may import it.
"""
