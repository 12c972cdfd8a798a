"""Runs commands on a host of the laboratory for `control.py`: one connection, one command.

It listens on a Unix socket, or on a TCP port of a private network that nothing but the laboratory is on. A request is
a line of JSON: ``argv``, ``environment`` and perhaps ``output``, a file to which output is appended. The answer, when
the command has ended, is a line of JSON: ``status`` and ``output``. Needs nothing but Python's own library.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading


def serve(address: str) -> None:
    """Answer requests for ever.

    Args:
        address: ``host:port``, or the path of a Unix socket to be made.
    """
    if address.startswith("/"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
    else:
        host, _, port = address.rpartition(":")
        listener = socket.create_server((host, int(port)))
    listener.listen()
    print("agent: ready", flush=True)
    while True:
        threading.Thread(target=_answer, args=(listener.accept()[0],), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection, connection.makefile("rwb") as stream:
        try:
            status, output = _run(json.loads(stream.readline()))
        except (OSError, ValueError) as error:
            status, output = 127, f"agent: {error}\n"
        stream.write(json.dumps({"status": status, "output": output}).encode() + b"\n")


def _run(request: dict[str, object]) -> tuple[int, str]:
    argv = [str(argument) for argument in request["argv"]]  # type: ignore[attr-defined]
    environment = {**os.environ, **request["environment"]}  # type: ignore[dict-item]
    if request.get("output"):
        with open(str(request["output"]), "ab") as file:
            return subprocess.run(argv, env=environment, stdout=file, stderr=file, check=False).returncode, ""
    done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout.decode(errors="replace")


if __name__ == "__main__":
    serve(sys.argv[1])
