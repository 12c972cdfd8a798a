"""Looks, and changes nothing that counts.

*status* tells who works, what waits (*backlog*) and what needs attention; *openmetrics* is the same for programs.
*doctor* tries a filesystem: *place_probes*, *data_probes*, *race_probes* and *visibility_probes* in a *probe_context*,
with a second *probe_process*; *findings* say what each found, *mounts* what is mounted.

Imports core, journal and scavenger.
"""
