"""Check our own tools and the peers that are installed, and show each failure by its script."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from benchmarks.conformance.peers import PEERS, Peer
from benchmarks.conformance.scripts import script

from lowland.testing import Adapter, check, own_adapters


@dataclass
class Tool:
    """What was found of one tool: its outcomes by rule, as (status, detail), and what the scripts of failures said."""

    name: str
    family: str
    package: str
    version: str
    outcomes: dict[str, tuple[str, str]]
    scripts: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def counts(self) -> Counter[str]:
        return Counter(status for status, _ in self.outcomes.values())


@dataclass
class Found:
    """Tools in the order of the table, and peers that could not be checked with the reason."""

    tools: list[Tool]
    absent: dict[str, str]

    def describe(self) -> dict[str, Any]:
        return asdict(self)


def quietly(function: Any, *arguments: Any) -> Any:
    """Call a function without what peers print."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return function(*arguments)


def tool_of(adapter: Adapter, package: str, version: str) -> Tool:
    outcomes = {o.rule.name: (o.status, o.detail) for o in quietly(check, adapter)}
    return Tool(adapter.name, adapter.family, package, version, outcomes)


def run_script(text: str) -> str:
    """Run a script and return the last line of its error, empty if it has none."""
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # for the page alone: scripts show their failure whatever the state
            np.random.seed(0)
            quietly(exec, compile(text, "script", "exec"), {"__name__": "__main__"})
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:160]}"
    return ""


def add_scripts(tool: Tool) -> None:
    """Run the script of every failure; a failure without a script that shows it is an error of ours."""
    for rule, (status, _) in tool.outcomes.items():
        if status != "broken":
            continue
        text = script(tool.name, rule)
        if text is None:
            raise LookupError(f"no script shows how {tool.name} breaks {rule}")
        tool.scripts[rule], tool.errors[rule] = text, run_script(text)
        if not tool.errors[rule]:
            raise LookupError(f"the script for {rule} of {tool.name} ends without an error")


def peers_of(peer: Peer) -> list[Tool]:
    module = quietly(importlib.import_module, f"benchmarks.conformance.peers.{peer.module}")
    version = importlib.metadata.version(peer.distribution)
    return [tool_of(adapter, peer.distribution, version) for adapter in module.adapters()]


def run() -> Found:
    tools = [tool_of(adapter, "lowland", importlib.metadata.version("lowland")) for adapter in own_adapters()]
    absent = {}
    for peer in PEERS:
        try:
            tools += peers_of(peer)
        except ImportError as error:
            absent[peer.distribution] = str(error)
    for tool in tools:
        if tool.package != "lowland":
            add_scripts(tool)
    return Found(tools, absent)
