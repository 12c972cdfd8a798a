"""What people and programs see of events, and of a base.

*follow* takes the events of a scavenge, a check or a sweep to their end: *progress* adds them up (*estimate*,
*screen_rows*), and one view shows them: *screen* (of *screen_parts* and *cells*), *lines* or *json_lines*, with the
sentences of *wording*; *summary* ends it. *status_page* is the page of ``rear status``.
"""
