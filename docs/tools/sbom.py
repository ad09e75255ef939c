"""Write what a Python environment gives to those who install Lowland, as CycloneDX JSON: ``python docs/tools/sbom.py``.

Everything that `lowland` asks for, directly or not, with versions, licences and relations from the metadata of what is
installed; ``--extra NAME`` adds an extra. The same environment gives the same bytes: the date is SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid
from datetime import UTC, datetime
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def bill(root: str = "lowland", extras: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the bill of materials of an installed distribution.

    Args:
        root: Its name.
        extras: Extras of it that are meant too.

    Returns:
        CycloneDX 1.6 as plain values, in an order that depends on the names alone.
    """
    found, related = closure(root, extras)
    top = canonicalize_name(root)
    parts = [component(found[name]) for name in sorted(found) if name != top]
    links = [{"ref": ref(found[a]), "dependsOn": [ref(found[b]) for b in sorted(related[a])]} for a in sorted(found)]
    made = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([parts, links], sort_keys=True))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"timestamp": made.isoformat(), "component": component(found[top])},
        "components": parts,
        "dependencies": links,
    }


def closure(root: str, extras: frozenset[str]) -> tuple[dict[str, Distribution], dict[str, set[str]]]:
    """Return the distributions that one asks for, by name, and what each of them asks for.

    Args:
        root: Name of the distribution to start from.
        extras: Extras of it.

    Returns:
        Distributions, and names of theirs by name.

    Raises:
        LookupError: If a requirement is not installed.
    """
    found: dict[str, Distribution] = {}
    related: dict[str, set[str]] = {}
    done: set[tuple[str, str]] = set()
    todo = [(canonicalize_name(root), extra) for extra in ("", *sorted(extras))]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError as error:
            raise LookupError(f"{name} is asked for and not installed") from error
        for wanted in map(Requirement, found[name].requires or ()):
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                asked = canonicalize_name(wanted.name)
                related.setdefault(name, set()).add(asked)
                todo += [(asked, inner) for inner in ("", *sorted(wanted.extras))]
        related.setdefault(name, set())
    return found, related


def component(found: Distribution) -> dict[str, Any]:
    """Return one entry.

    Args:
        found: The distribution.

    Returns:
        Name, version, package URL and licence.
    """
    name = canonicalize_name(found.name)
    entry = {"type": "library", "bom-ref": ref(found), "name": name, "version": found.version, "purl": ref(found)}
    licenses = licence(found)
    return entry | ({"licenses": licenses} if licenses else {})


def ref(found: Distribution) -> str:
    """Return the package URL, by which entries refer to each other.

    Args:
        found: The distribution.

    Returns:
        Such as ``pkg:pypi/numpy@2.4.6``.
    """
    return f"pkg:pypi/{canonicalize_name(found.name)}@{found.version.replace('+', '%2B')}"


def licence(found: Distribution) -> list[dict[str, Any]]:
    """Return the licence as the metadata state it: an expression, else a short name, else what the classifiers say.

    Args:
        found: The distribution.

    Returns:
        The entry's ``licenses``; empty where nothing is stated.
    """
    stated = found.metadata
    if expression := stated.get("License-Expression"):
        return [{"expression": expression}]
    text = (stated.get("License") or "").strip()
    classified = [c.rpartition(" :: ")[2] for c in stated.get_all("Classifier") or [] if c.startswith("License :: ")]
    names = [text] if text and "\n" not in text and len(text) < 60 else classified  # some put the whole text there
    return [{"license": {"name": name}} for name in names]


def main() -> int:
    """Write the bill to a file or to standard output.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", nargs="?", help="file to write")
    parser.add_argument("--extra", action="append", default=[], help="an extra of lowland; repeatable")
    given = parser.parse_args()
    text = json.dumps(bill(extras=frozenset(given.extra)), indent=1) + "\n"
    if given.path is None:
        sys.stdout.write(text)
    else:
        with open(given.path, "w", encoding="utf-8") as file:
            file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
