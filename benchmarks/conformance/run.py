"""Check our own tools and the peers that are installed, and show each failure by its script."""

from __future__ import annotations

import importlib
import io
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from typing import Any

from benchmarks.conformance.peers import PEERS, Peer

from lowland.testing import document, examine, own_adapters

confirmed = partial(examine, alone=True)


def quietly(function: Any, *arguments: Any) -> Any:
    """Call a function without what peers print."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return function(*arguments)


def peers_of(peer: Peer) -> list[dict[str, Any]]:
    module = quietly(importlib.import_module, f"benchmarks.conformance.peers.{peer.module}")
    return [quietly(confirmed, adapter, peer.distribution) for adapter in module.adapters()]


def run() -> dict[str, Any]:
    """Return the document, with the peers that could not be checked and why."""
    tools = [quietly(confirmed, adapter, "lowland") for adapter in own_adapters()]
    absent = {}
    for peer in PEERS:
        try:
            tools += peers_of(peer)
        except ImportError as error:
            absent[peer.distribution] = str(error)
    return {**document(tools), "absent": absent}
