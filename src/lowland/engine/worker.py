"""The process on the other side: started by `lowland.engine.processes`, computes chunks until it is told to stop.

It is a fresh interpreter that never imports the driver's script, so that scripts need no ``__main__`` guard. What it
reads comes from its driver alone, over a socket that both inherited.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any


def main(arguments: list[str]) -> None:
    """Serve one driver."""
    socket, crash = (int(argument) for argument in arguments)
    faulthandler.enable(os.fdopen(crash, "w"))
    connection = Connection(socket)
    requests: SimpleQueue[bytes] = SimpleQueue()
    signal.signal(signal.SIGTERM, partial(_leave, requests))
    # read all the time: if both sides were busy sending large results, neither would ever read
    threading.Thread(target=_read, args=(connection, requests), daemon=True).start()
    try:
        _serve(connection, requests)
    except KeyboardInterrupt:
        _send(connection, "interrupted", None)
    except Exception as error:  # setting up failed: the same would happen in every worker
        from lowland.engine.packing import pack, portable

        _send(connection, "broken", pack(portable(error), "error"))


def _read(connection: Connection, requests: SimpleQueue[bytes]) -> None:
    try:
        while True:
            requests.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)  # the driver has gone: nobody wants the rest


def _serve(connection: Connection, requests: SimpleQueue[bytes]) -> None:
    from lowland.engine.packing import Remote, unpack

    if not (first := requests.get()):
        return
    threads, setup = pickle.loads(first)
    entered = unpack(setup)
    if "torch" in sys.modules:  # imported later, it reads the environment that `cores.thread_variables` made
        sys.modules["torch"].set_num_threads(threads)
    with entered() as context:
        remote = Remote(context)
        _send(connection, "ready", None)
        while request := requests.get():
            _send(connection, *remote(*pickle.loads(request)))


def _send(connection: Connection, kind: str, content: Any) -> None:
    connection.send_bytes(pickle.dumps((kind, content)))


def _leave(requests: SimpleQueue[bytes], number: int, frame: FrameType | None) -> None:
    # Python drops an exception that a handler raises inside a destructor or a callback of a weak reference: then the
    # next request, which is none, ends the loop
    with suppress(Empty):
        while True:
            requests.get_nowait()
    requests.put(b"")
    sys.exit(128 + number)  # leaves the setup


if __name__ == "__main__":
    main(sys.argv[1:])
