"""The pages of a study from made-up rows: what is on them, and what they never hide."""

import math

from lowland.report.sections import Figure, Table
from lowland.report.statistics import t_interval
from lowland.report.study import SharpnessRow, StudyPage, StudyRow, study_sections
from lowland.viz.curves import pareto_front

VALUES = {"SGD": [0.8, 0.82, 0.81, 0.8], "SAM": [0.85, 0.86, 0.84, 0.86]}


def row(method, *, passes, values=None, **options):
    numbers = VALUES[method] if values is None else values
    found = dict(enumerate(numbers))
    if method != "SGD":
        differences = {seed: value - VALUES["SGD"][seed] for seed, value in found.items()}
        options = {"differences": differences, "difference": t_interval([*differences.values()]), **options}
    return StudyRow("", "epochs", method, found, t_interval(numbers), passes=passes, seconds=1.0, epochs=3, **options)


def page(*rows, **options):
    return StudyPage("Does it help?", "the rule", "test_accuracy", True, True, "SGD", tuple(rows), **options)


def table_of(sections, title):
    found = next(section for section in sections if section.title == title)
    return next(block for block in found.blocks if isinstance(block, Table))


def test_differences_are_paired_and_in_points():
    rows = row("SGD", passes=10.0), row("SAM", passes=20.0, verdict="reproduced", reason="why", adjusted=0.001)
    table = table_of(study_sections(page(*rows)), "Equal epochs")
    cells = dict(zip(table.header, table.rows[1], strict=True))
    assert cells["difference to SGD (points)"].startswith("+4.50 [")
    assert cells["answer"] == "reproduced: why" and cells["passes, all counted (× SGD)"].endswith("(2.00 ×)")


def test_the_figures_are_in_per_cent_with_one_point_per_seed():
    rows = row("SGD", passes=10.0), row("SAM", passes=20.0, verdict="reproduced")
    section = study_sections(page(*rows))[1]
    paired, cost = (block.spec for block in section.blocks if isinstance(block, Figure))
    assert len(paired.estimates) == 1 and len(paired.estimates[0].seeds) == 4
    assert abs(cost.estimates[1].y - 85.25) < 1e-9 and "SGD, SAM" in cost.caption
    assert [round(y, 9) for _, y in cost.front] == [80.75, 85.25] and paired.front == ()


def test_failed_runs_and_undecided_answers_are_printed():
    bad = row(
        "SAM",
        passes=20.0,
        values=[0.85, 0.86, 0.84],
        failed={3: "RuntimeError: boom"},
        verdict="undecided",
        reason="1 run failed",
        seeds_needed=12,
    )
    sections = study_sections(page(row("SGD", passes=10.0), bad))
    assert table_of(sections, "Failed runs").rows == (("SAM equal epochs", "3", "RuntimeError: boom"),)
    table = table_of(sections, "Equal epochs")
    assert "12 seeds would decide" in table.rows[1][table.header.index("answer")]


def test_a_dominated_method_is_off_the_front():
    assert pareto_front([(1, 0.8), (2, 0.8), (2, 0.9), (3, math.nan)]) == [True, False, True, False]
    assert pareto_front([(1, 0.8), (1, 0.8)]) == [True, True]


def test_a_lower_endpoint_turns_the_front():
    rows = row("SGD", passes=10.0), row("SAM", passes=20.0, verdict="refuted")
    lower = StudyPage("", "r", "test_loss", False, False, "SGD", rows)
    assert [cells[-1] for cells in table_of(study_sections(lower), "Equal epochs").rows] == ["yes", "no"]


def test_sharpness_and_search_appear_only_where_measured():
    rows = row("SGD", passes=10.0), row("SAM", passes=20.0)
    assert [section.title for section in study_sections(page(*rows))] == ["Question", "Equal epochs"]
    measured = (SharpnessRow("lambda_max", "one seed", 0.5, 0.1, 0.9, 0.4, 12, "0.25 (method)"),)
    full = page(
        *rows, sharpness=measured, points={"SGD": [(1.0, 2.0)]}, point_measure="lambda_max", best_of={"SGD": [0.7, 0.8]}
    )
    titles = [section.title for section in study_sections(full)]
    assert titles[2:] == ["Search", "Sharpness against generalization"]
    assert table_of(study_sections(full), titles[-1]).rows[0][2] == "0.50 [0.10, 0.90]"
