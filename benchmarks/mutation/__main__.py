"""Break our own source in hundreds of places, one at a time, and count what the fast tests catch.

python -m benchmarks.mutation record                 # which test runs which line; once, and again for files named
python -m benchmarks.mutation run [--minutes 10]     # resumable: verdicts are stored by mutant
python -m benchmarks.mutation run --again survived   # after tests were written (record their files first)
python -m benchmarks.mutation show ID                # the broken line

Places are chosen by a seed, as many of each room, in turn over the kinds of fault. A mutant meets the fast tests that
run its line, within a budget of seconds, until one fails. ``equivalent.json`` holds the mutants that change nothing
that can be observed, each with its reason.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks.mutation.harness import Chosen, Recorder, Workshop, read_map
from benchmarks.mutation.operators import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "mutation.json"
EQUIVALENT = Path(__file__).with_name("equivalent.json")
ROOMS = ("core", "optim", "losses", "landscape", "curvature", "engine", "results", "training")
TESTS = ("tests/unit", "tests/contracts", "tests/reference", "tests/golden")
Record = Mapping[str, Any]


def chosen(files: Iterable[tuple[Path, str]], per_room: int, seed: int) -> list[Mutant]:
    """Return mutants of each room, in turn over kinds, in an order that edits elsewhere leave alone."""
    rooms: dict[str, dict[str, list[Mutant]]] = defaultdict(lambda: defaultdict(list))
    for path, name in files:
        for mutant in mutants(path, name):
            rooms[mutant.room][mutant.kind].append(mutant)
    sources = {name: path.read_bytes() for path, name in files}
    picked: list[Mutant] = []
    for _, kinds in sorted(rooms.items()):
        queues = [sorted(some, key=lambda m: _rank(seed, m)) for _, some in sorted(kinds.items())]
        turns = (mutant for turn in range(max(map(len, queues))) for some in queues for mutant in some[turn : turn + 1])
        picked += itertools.islice((mutant for mutant in turns if _compiles(mutant, sources[mutant.path])), per_room)
    return sorted(picked, key=lambda m: _rank(seed, m))  # a part of a pass is a fair sample too


def _compiles(mutant: Mutant, source: bytes) -> bool:
    try:
        compile(mutant.apply(source), mutant.path, "exec")
    except SyntaxError:
        return False
    return True


def _rank(seed: int, mutant: Mutant) -> str:
    return hashlib.sha1(f"{seed}:{mutant.id}".encode()).hexdigest()


def guards(
    mutant: Mutant, tests: Sequence[Record], budget: float, root: Path = ROOT, first: Sequence[str] = ()
) -> list[str]:
    """Return tests that run a mutant's lines, within seconds, one case of each first.

    In turn come those that run what few run of its function, and those that are near it by name; tests of the files
    named `first` come before all. What runs on import,
    such as constants and defaults, is guarded by every test that runs a line of the file, or that names the module.
    """
    file = mutant.path.removeprefix("src/")
    lines = _mask(mutant.line, mutant.end)
    running = [test for test in tests if test["lines"].get(file, 0)]
    near = [test for test in running if test["lines"][file] & lines]
    if mutant.on_import:
        stem = Path(file).stem
        named = re.compile(rf"{mutant.room}(\.| import (.*, )?){stem}\b")
        known = {name for name in _files(test["test"] for test in tests) if named.search((root / name).read_text())}
        near = [test for test in tests if test["lines"].get(file, 0) or _files([test["test"]])[0] in known]
    span = range(mutant.body[0], mutant.body[1] + 1)
    counts = {line: sum(test["lines"][file] >> line & 1 for test in running) for line in span}

    def rarest(test: Record) -> tuple[int, float]:
        ran = test["lines"].get(file, 0)
        return min((n for k, n in counts.items() if ran >> k & 1), default=len(tests)).bit_length(), test["seconds"]

    def nearest(test: Record) -> tuple[int, float]:
        name = test["test"].partition("::")[0]
        return -(mutant.room in name) - (Path(file).stem in name), test["seconds"]

    turns = zip(sorted(near, key=rarest), sorted(near, key=nearest), strict=True)
    order = dict.fromkeys(test["test"] for test in itertools.chain.from_iterable(turns))
    seconds, cases, names = {test["test"]: test["seconds"] for test in near}, Counter[str](), list[str]()
    rounds = []
    for number, name in enumerate(order):  # the first case of every test, then the second of each
        function = name.partition("[")[0]
        rounds.append((_files([name])[0] not in first, cases[function], number, name))
        cases[function] += 1
    for *_, name in sorted(rounds):
        if not names or budget >= seconds[name]:
            names.append(name)
            budget -= seconds[name]
    return names


def _mask(first: int, last: int) -> int:
    return (1 << last + 1) - (1 << first)


def verdict(mutant: Mutant, names: Sequence[str], shop: Workshop, limit: float) -> dict[str, Any]:
    """Break, test, mend."""
    none = {"verdict": "not run by a test"}
    if not names:
        return none
    failures = shop.copy.parent / "failures.txt"
    failures.unlink(missing_ok=True)
    begin = time.perf_counter()
    with shop.broken(mutant.path, mutant.apply((shop.copy / mutant.path).read_bytes())):
        status = shop.run(["-x", *_files(names)], Chosen(names, failures), limit)
    found = {"tests": len(names), "seconds": round(time.perf_counter() - begin, 1)}
    if status is None:
        return {"verdict": "caught", "by": "the limit of time", **found}
    if status in (pytest.ExitCode.NO_TESTS_COLLECTED, pytest.ExitCode.USAGE_ERROR):  # a map of tests that are gone
        return none
    by = failures.read_text().split("\n")[0] if failures.exists() else "collection"
    return {"verdict": "survived", **found} if status == 0 else {"verdict": "caught", "by": by, **found}


def _files(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.partition("::")[0] for name in names))


def record(shop: Workshop, files: Sequence[str], table: Path) -> None:
    """Trace test files one by one."""
    for file in files:
        begin = time.perf_counter()
        part = table.with_suffix(".part")
        part.unlink(missing_ok=True)
        status = shop.run([file], Recorder(shop.copy / "src", part), 600)
        with table.open("a") as stream:  # a file that was cut short is recorded anew
            stream.write(part.read_text() if part.exists() else "")
        print(f"{file}: status {status}, {time.perf_counter() - begin:.0f} s", flush=True)


def controls(results: Mapping[str, Record], shop: Workshop) -> list[str]:
    """Return tests that caught something and fail on sound source too: what they caught does not count."""
    names = sorted({row["by"] for row in results.values() if "::" in row.get("by", "")})
    failures = shop.copy.parent / "failures.txt"
    failures.unlink(missing_ok=True)
    shop.run(_files(names), Chosen(names, failures), 1200)
    return failures.read_text().split() if failures.exists() else []


def parsed() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["record", "run", "show"])
    parser.add_argument("names", nargs="*", help="test files to record, or ids of mutants to run or show")
    parser.add_argument("--again", nargs="*", default=[], help="verdicts to find anew, such as survived")
    parser.add_argument("--first", nargs="*", default=[], help="test files to begin with, such as those just written")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--per-room", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of tests a mutant")
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/lowland-mutation"), help="the copy and the map")
    return parser.parse_args()


def main() -> None:
    """Run the command."""
    options = parsed()
    options.work.mkdir(parents=True, exist_ok=True)
    table = options.work / "map.jsonl"
    stored = json.loads(RESULT.read_text()) if RESULT.exists() else {"mutants": {}}
    paths = [path for room in ROOMS for path in sorted((ROOT / "src/lowland" / room).glob("*.py"))]
    files = [(path, str(path.relative_to(ROOT))) for path in paths]
    picked = chosen(files, options.per_room, options.seed)
    if options.command == "show":
        for mutant in picked:
            if mutant.id in options.names or (not options.names and mutant.id not in stored["mutants"]):
                print(mutant.id, f"{mutant.path}:{mutant.line}", mutant.function, mutant.kind)
                print(f"  - {mutant.before}\n  + {mutant.after}")
        return
    shop = Workshop(ROOT, options.work, "lowland")
    if options.command == "record":
        every = [str(p.relative_to(ROOT)) for folder in TESTS for p in sorted((ROOT / folder).glob("test_*.py"))]
        known = set(_files(test["test"] for test in read_map(table)))
        record(shop, options.names or [name for name in every if name not in known], table)
        return
    run(picked, stored, shop, options, read_map(table))


def run(
    picked: Sequence[Mutant], stored: dict[str, Any], shop: Workshop, options: Any, tests: Sequence[Record]
) -> None:
    """Find the verdicts that are missing, and store each."""
    reasons = json.loads(EQUIVALENT.read_text())
    before, begin = stored["mutants"], time.monotonic()
    kept = {m.id: before[m.id] for m in picked if m.id in before}
    for mutant in picked:
        known = mutant.id in kept and mutant.id not in options.names
        again = known and kept[mutant.id]["verdict"] in options.again and mutant.id not in reasons
        if (known and not again) or time.monotonic() - begin > 60 * options.minutes:
            continue
        names = guards(mutant, tests, options.budget, first=options.first)
        found = verdict(mutant, names, shop, 20 + 2 * options.budget)
        kept[mutant.id] = {**mutant.describe(), **found}
        place = f"{mutant.path}:{mutant.line} {mutant.kind}: {mutant.before!r} -> {mutant.after!r}"
        print(mutant.id, f"{found['verdict']:9} {found.get('seconds', 0):5} s", place, flush=True)
        _store(kept, reasons, options, [])
    if len(kept) == len(picked):
        _store(kept, reasons, options, controls(kept, shop))


def _store(rows: dict[str, Any], reasons: Mapping[str, str], options: Any, unsound: Sequence[str]) -> None:
    from lowland.core.provenance import provenance  # after the forks: they import the copy's

    for identity, row in rows.items():
        row.pop("reason", None)
        if identity in reasons and row["verdict"] != "caught":
            row["reason"] = reasons[identity]
    held = {"seed": options.seed, "per_room": options.per_room, "unsound": list(unsound)}
    RESULT.write_text(json.dumps({**provenance(), **held, "mutants": dict(sorted(rows.items()))}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
