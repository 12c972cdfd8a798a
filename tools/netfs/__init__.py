"""Two hosts on a real network file system, on one machine: for tests, and to try things by hand.

`nfs.Nfs` and `gluster.Gluster` bring up a server and two hosts, A and B, that have its share mounted. Hosts can be
frozen, powered off, cut off the network and set to another time; the server can be killed, restarted and filled up.
Everything runs in namespaces of its own that end with the process that made them: nothing is left behind.

Needs root and Debian's packages; `why_not` of each class says what is missing. ``python tools/netfs nfs`` takes
commands from standard input.
"""
