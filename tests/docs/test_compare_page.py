"""The guide on comparing methods does what it says: its files are read, its commands run at toy size, its numbers agree."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lowland.cli.main import main
from lowland.study.instrument import largest_spread

PAGE = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```yaml\n# ([\w.]+)\n(.*?)```", PAGE, re.S))
COMMANDS = re.findall(r"^(lowland (?:study|recommend) .*)$", PAGE, re.M)
TOY = {
    "study": ["--base.epochs", "1", "--seeds", "2", "--search.trials", "1", "--survey.curvature", "0"],
    "recommend": [
        *("--base.epochs", "1", "--seeds", "2", "--fresh", "4", "--trials", "1"),
        *("--methods", '{"SGD": {}, "SAM": {"optimizer.method": "sam"}}'),
    ],
}
SMALL = ["--data.options.train_size", "40"]


def test_every_command_is_tried():
    assert list(FILES) == ["study.yaml", "recommend.yaml"] and len(COMMANDS) == 2


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_runs(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    words = [word for word in shlex.split(line)[1:] if word not in ("--engine", "processes:2")]
    small = [word.replace("--", "--base.") if word.startswith("--") else word for word in SMALL]
    toy = TOY[words[0]] + (small if words[0] == "study" else SMALL)
    assert main([*words, *toy]) == 0
    captured = capsys.readouterr()
    assert "Power: " in captured.err and "Report: " in captured.out
    if words[0] == "study":
        assert {"SGD", "SAM", "SAM late"} <= set(re.findall(r"SAM late|SGD|SAM", captured.out))


@pytest.mark.parametrize("line", COMMANDS)
def test_a_typing_error_in_a_file_of_the_page_is_one_line(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.replace("seeds:", "seedz:", 1).replace("optimizer.method", "optimizer.metod"))
    assert main(shlex.split(line)[1:]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "did you mean" in said


def test_the_table_of_power_is_what_a_study_prints():
    table = PAGE.split("<!-- power -->")[1].split("<!-- /power -->")[0]
    rows = re.findall(r"\| (\d+) \| ([\d.]+) \|", table)
    assert len(rows) == 6
    for seeds, spread in rows:
        assert f"{largest_spread(int(seeds), 1.0):.2f}" == spread
