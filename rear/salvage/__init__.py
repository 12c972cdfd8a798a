"""One damaged Zip: members found, judged, brought into a new archive. Knows no base and no journal.

*scan* finds local headers (*local_headers*, *data_descriptors*); *nested_archives* says whether one is the archive's;
*member_check* judges it by *whole_member*, *header_repair*, *partial_member*, *directory_evidence*; *scan_result* and
*inventory* keep what was found. *rebuild* copies whole members, with *damaged_directory*, *rebuilt_names*,
*rebuilt_headers* and *lost_headers*; *read_back* compares before anything is replaced. *info_zip* runs ``zip -FF``.

Imports core and zip.
"""
