"""A pytest plugin: ``pytest --conformance FILE`` checks every adapter that the file defines.

Loaded by every pytest run beside which Lowland is installed, so it imports nothing but pytest before it is asked to.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lowland.testing.rulebook import Adapter, Rule

_PATTERN = "conformance_*.py"
_FOUND = pytest.StashKey[dict[Any, dict[str, Any]]]()
"""What was found, by adapter and rule."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option ``--conformance``."""
    parser.getgroup("lowland").addoption(
        "--conformance",
        action="store_true",
        help="check the adapters defined in the files named, and in those called conformance_*.py, "
        "against lowland.testing's rules",
    )
    parser.getgroup("lowland").addoption(
        "--conformance-results",
        metavar="FILE",
        help="write what was found, with a script for each failure, to a JSON file",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin without anything found."""
    config.stash[_FOUND] = {}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was found, if asked to."""
    path, found = session.config.getoption("conformance_results"), session.config.stash[_FOUND]
    if path and found:
        from lowland.testing.results import document, tool

        made = document([tool(adapter, entries) for adapter, entries in found.items()])
        Path(path).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect the adapters of a file if asked to."""
    if not parent.config.getoption("conformance") or file_path.suffix != ".py":
        return None
    if not (file_path.match(_PATTERN) or parent.session.isinitpath(file_path)):
        return None
    made: pytest.Collector = AdapterFile.from_parent(parent, path=file_path)
    return made


class AdapterFile(pytest.File):
    """A file that defines adapters."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield one test per adapter and rule."""
        from lowland.testing.rulebook import rules

        for adapter in _adapters(_loaded(self.path)):
            for rule in rules(adapter.family):
                yield RuleItem.from_parent(
                    self, name=f"{type(adapter).__name__}::{rule.name}", adapter=adapter, rule=rule
                )


class RuleItem(pytest.Item):
    """One rule checked on one adapter."""

    def __init__(self, *, adapter: Adapter, rule: Rule, **options: Any) -> None:
        super().__init__(**options)
        self.adapter, self.rule = adapter, rule

    def runtest(self) -> None:
        """Fail where the rule is broken, skip where it is not offered or the tool documents otherwise."""
        from lowland.testing.results import entry
        from lowland.testing.rulebook import check

        (outcome,) = check(self.adapter, self.rule)
        found = entry(self.adapter, outcome)
        self.config.stash[_FOUND].setdefault(self.adapter, {})[self.rule.name] = found
        if outcome.status == "broken":
            shown = found["reproduction"]
            script = f"{shown['source']}# {shown['output']}" if shown["source"] else f"No script: {shown['missing']}."
            pytest.fail(f"{self.rule.statement}\n{self.adapter.name}: {outcome.detail}\n\n{script}", pytrace=False)
        elif outcome.status != "holds":
            pytest.skip(f"{outcome.status}: {outcome.detail}")

    def reportinfo(self) -> tuple[Path, None, str]:
        """Return where the test comes from."""
        return self.path, None, self.name


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"lowland_conformance_of_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # what the file defines can be pickled only from a module that is known
    spec.loader.exec_module(module)
    return module


def _adapters(module: ModuleType) -> list[Adapter]:
    from lowland.testing.rulebook import Adapter

    return [
        kind()
        for kind in vars(module).values()
        if inspect.isclass(kind)
        and issubclass(kind, Adapter)
        and kind.__module__ == module.__name__
        and not inspect.isabstract(kind)
        and not kind.__name__.startswith("_")
    ]
