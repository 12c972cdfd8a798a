"""Asks the agent of a host to run a command, prints its output and ends with its status: what ssh is elsewhere.

    python control.py ADDRESS REQUEST

See `agent.py` for both.
"""

from __future__ import annotations

import json
import socket
import sys


def ask(address: str, request: str) -> tuple[int, str]:
    """Send a request; return status and output of the command when it has ended."""
    if address.startswith("/"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
    else:
        host, _, port = address.rpartition(":")
        connection = socket.create_connection((host, int(port)))
    with connection, connection.makefile("rwb") as stream:
        stream.write(request.encode() + b"\n")
        stream.flush()
        line = stream.readline()
    if not line:
        return 255, "control: the host went away\n"
    answer = json.loads(line)
    return answer["status"], answer["output"]


if __name__ == "__main__":
    result, text = ask(sys.argv[1], sys.argv[2])
    sys.stdout.write(text)
    # As shells have it: 128 and the signal, for a command that a signal ended.
    sys.exit(result if result >= 0 else 128 - result)
