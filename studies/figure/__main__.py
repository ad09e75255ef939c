"""``python -m studies.figure``: train and survey what is missing, draw it, and write ``docs/figure.md``.

Runs and surfaces that are there are left alone; an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

from lowland.core.errors import InputError, LowlandError
from studies.figure.draw import draw_all
from studies.figure.others import draw_others, measure_others
from studies.figure.others_page import write_others
from studies.figure.page import budget_table, write_page
from studies.figure.plan import MNIST, Size, Survey
from studies.figure.record import Record
from studies.figure.work import Places, TimeIsUp, run_survey, stored

ONLY = ("run", "table", "draw", "budget")
_OTHERS = "others"
"""The other papers' pictures, which take minutes and come last."""


def main(arguments: Sequence[str] | None = None, *, size: Size = MNIST) -> int:
    """Run the command: 0 done, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    places = Places(*(Path(getattr(options, name)) for name in ("folder", "store", "page", "images")))
    try:
        return _run(options, Record(size, places))
    except LowlandError as error:
        print(f"studies.figure: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstudies.figure: interrupted; the same command goes on from what is stored", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m studies.figure", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="surveys by name, or parts of the plan; none takes all")
    parser.add_argument(
        "--only", choices=ONLY, default="run", help="table: write the page; draw: the pictures; budget: print the cost"
    )
    parser.add_argument("--minutes", type=float, help="stop after this time; the next run goes on")
    for name, default in vars(Places()).items():
        parser.add_argument(f"--{name}", default=str(default), help=f"default {default}")
    return parser


def _run(options: argparse.Namespace, record: Record) -> int:
    surveys = _chosen(record, options.names)
    if options.only in ("run", "budget"):
        print(budget_table(record), flush=True)
    if options.only == "run":
        in_time = _measure(surveys, record, options.minutes)
        if in_time and (not options.names or _OTHERS in options.names):
            measure_others(record.places)
    if options.only in ("run", "table"):
        write_page(record)
        write_others(record.places)
        print(f"Page: {record.places.page}")
    if options.only in ("run", "draw"):
        drawn = [*draw_all(record), *draw_others(record.places)]
        print(f"Pictures: {', '.join(path.name for path in drawn) or 'none: nothing is stored yet'}")
    return 0


def _chosen(record: Record, names: Sequence[str]) -> list[Survey]:
    known = {_OTHERS} | {name for survey in record.surveys for name in (survey.name, survey.part)}
    for name in names:
        if name not in known:
            raise InputError(
                "names", f"must be a survey or one of {sorted({_OTHERS, *(s.part for s in record.surveys)})}", name
            )
    return [survey for survey in record.surveys if not names or {survey.name, survey.part} & set(names)]


def _measure(surveys: Sequence[Survey], record: Record, minutes: float | None) -> bool:
    """Measure what is missing, and tell whether there was time for all of it."""
    if minutes is not None and not minutes > 0:
        raise InputError("minutes", "must be positive", minutes)
    until = None if minutes is None else time.monotonic() + 60 * minutes
    for survey in surveys:
        if stored(survey, record.size, record.places) is None:
            try:
                run_survey(survey, record.size, record.places, until=until, tell=lambda text: print(text, flush=True))
            except TimeIsUp:
                print("The time is over; the same command goes on from what is stored.")
                return False
    return True


if __name__ == "__main__":
    sys.exit(main())
