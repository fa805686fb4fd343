"""Stands where Ray started a worker: has the server of warm_start.py fork it, and ends when it has ended.

warm_worker.py setup_worker.py default_worker.py ARGUMENT...: in this environment; the server's address is in
WARM_ADDRESS. Ray's set-up would only replace itself by the second program, and set environment variables that a runtime
environment may have.
"""

from __future__ import annotations

import json
import os
import socket
import sys

CONTEXT = "--serialized-runtime-env-context="
FOR_THE_SET_UP = (CONTEXT, "--language=")

if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ["WARM_ADDRESS"])
        _, program, *arguments = [part for part in sys.argv[1:] if not part.startswith(FOR_THE_SET_UP)]
        for part in sys.argv:
            if part.startswith(CONTEXT):
                os.environ.update(json.loads(part.removeprefix(CONTEXT)).get("env_vars") or {})
        request = {
            "program": program,
            "arguments": arguments,
            "log": os.devnull,
            "environments": [dict(os.environ)],
        }
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile() as answers:
            answers.readline()
            (status,) = json.loads(answers.readline() or "[1]")
    sys.exit(status if status >= 0 else 128 - status)
