"""What a number depends on: followed by name through the package, deaf to comments, blind to what is not used."""

import shutil
import textwrap
from functools import partial

import pytest

from lowland.study.bench import names_in_run
from lowland.study.dependencies import Name, Source, bare_code, names_in_call, own_source
from lowland.study.rows.landscape import order_agrees
from lowland.study.rows.tasks import SMALL, digits, endpoint, reader, signals, steps_to
from lowland.workflows import FitSpec, LossSpec, OptimizerSpec

FILES = {
    "__init__.py": "",
    "room/__init__.py": "from lowland.room.one import first\nfrom lowland.room.two import second",
    "room/one.py": """
        from lowland.room import three
        from lowland.room.five import Kind
        from lowland.room.four import LIMIT

        def first(x: int) -> int:
            '''Says what it does.'''
            return inner(x) + three.used(x) + isinstance(x, Kind)

        def inner(x):
            return min(x, LIMIT)

        def apart(x):
            return x
        """,
    "room/two.py": "def second(x):\n    return x",
    "room/three.py": "def used(x):\n    return x\ndef other(x):\n    return x",
    "room/four.py": "LIMIT = 3\nFLOOR = 1",
    "room/five.py": "class Kind:\n    def value(self):\n        return 1",
    "viz/__init__.py": "def show(x):\n    return x",
}


def write(folder, **changed):
    for name, text in {**FILES, **changed}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return Source(folder)


ROOT = [Name("room", "first")]


@pytest.mark.parametrize(
    ("file", "old", "new", "differs"),
    [
        ("room/one.py", "inner(x) + three", "inner(x) - three", True),
        ("room/one.py", "min(x, LIMIT)", "max(x, LIMIT)", True),
        ("room/four.py", "LIMIT = 3", "LIMIT = 4", True),
        ("room/three.py", "def used(x):\n    return x", "def used(x):\n    return 2 * x", True),
        ("room/four.py", "LIMIT = 3", "LIMIT = 3\nimport os\nos.umask(2)", True),
        ("room/four.py", "FLOOR = 1", "FLOOR = 2", False),
        ("room/five.py", "return 1", "return 2", False),
        ("room/three.py", "def other(x):\n    return x", "def other(x):\n    return 2 * x", False),
        ("room/one.py", "def apart(x):", "def apart(x, y):", False),
        ("room/two.py", "return x", "return 2 * x", False),
        ("room/__init__.py", "two import second", "two import second as third", False),
        ("room/one.py", "Says what it does.", "Says it better.", False),
        ("room/one.py", "x: int) -> int", "x: float) -> float", False),
        ("room/one.py", "def inner(x):\n", "def inner(x):  # a reason\n\n", False),
    ],
)
def test_only_code_that_is_reached_counts(tmp_path, file, old, new, differs):
    before = write(tmp_path / "a").fingerprint(ROOT)
    text = textwrap.dedent(FILES[file])
    assert old in text
    after = write(tmp_path / "b", **{file: text.replace(old, new)}).fingerprint(ROOT)
    assert (before != after) is differs


def test_names_are_followed_through_re_exports_and_modules(tmp_path):
    found = write(tmp_path).reached(ROOT)
    assert found == {
        Name("room.one", "first"), Name("room.one", "inner"), Name("room.three", "used"), Name("room.four", "LIMIT")
    }  # fmt: skip


def test_comments_docstrings_and_annotations_are_no_code():
    one = 'def f(x):\n    """Old."""\n    return x  # why\n'
    assert bare_code(one) == bare_code('"""New."""\ndef f(x: int) -> int:\n\n    """Other."""\n    return x\n')
    assert bare_code(one) != bare_code(one.replace("return x", "return x + 1"))


def modules(spec):
    return {name.module for name in own_source().reached(names_in_run(spec))}


def run(method="none", loss="none", **options):
    return FitSpec(optimizer=OptimizerSpec(method=method), loss=LossSpec(method=loss, options=options))


@pytest.mark.parametrize("method", ["sam", "asam", "gsam", "looksam", "msam", "lookahead", "sala", "ema", "swa"])
def test_a_run_depends_on_its_optimizer_and_what_that_is_made_of(method):
    file = {"ema": "averaging", "swa": "averaging"}.get(method, method)
    found = modules(run(method))
    assert {f"optim.{file}", "optim.wrapper", "optim.holder", "optim.moves", "training.fit"} <= found
    others = {"optim.gsam", "optim.msam", "optim.asam"} - {f"optim.{file}"}
    assert not found & others


def test_a_run_depends_on_its_loss_its_data_and_its_network_alone():
    plain, reshaped = modules(run()), modules(run(loss="llr", reshaper={"name": "sech"}))
    assert {"losses.llr", "losses.reshapers", "losses.multipliers"} <= reshaped - plain
    assert "losses.mesa" not in reshaped and "losses.mesa" in modules(run(loss="mesa"))
    assert {"data.mnist1d", "data.noise", "data.splits", "models.conv1d"} <= modules(signals(SMALL))
    assert not {"data.cifar", "models.vit", "data.digits"} & modules(signals(SMALL))
    assert {"data.digits", "models.resnet"} <= modules(digits(SMALL))


def test_who_computes_and_who_draws_changes_no_number():
    outside = ("engine", "viz", "report", "cli", "integrations", "core.errors")
    for spec in (run("sam"), signals(SMALL), digits(SMALL)):
        assert not [module for module in modules(spec) if module.startswith(outside)]


def test_a_measure_names_what_it_encloses_and_its_numbers():
    assert names_in_call(steps_to(0.5))[1] == ["0.5"] != names_in_call(steps_to(1.0))[1]
    names, plain = names_in_call(endpoint("test_loss"))
    assert Name("study.rows.tasks", "reader") in names and "'test_loss'" in plain
    names, _ = names_in_call(reader(partial(order_agrees, None)))
    assert {name.module for name in names} == {"study.rows.tasks", "study.rows.landscape"}
    reached = {name.module for name in own_source().reached(names)}
    assert {"landscape.surface_task", "landscape.normalize", "results.geometry"} <= reached
    assert "curvature.density" not in reached


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("optim/sam.py", "import annotations\n", "import annotations\n# a remark\n", set()),
        ("optim/wrapper.py", "class Wrapper(", "class Wrapper(dict, ", {"sam", "ema"}),
        ("optim/averaging.py", "class EMA(", "class EMA(dict, ", {"ema"}),
        ("training/fit.py", "def fit(", "def fit(unused, ", {"none", "sam", "ema"}),
        ("viz/field.py", "class Field", "class Field2", set()),
        ("engine/serial.py", "import annotations\n", "import annotations\nprint()\n", set()),
    ],
)
def test_a_changed_file_makes_those_stale_that_use_it(tmp_path, file, old, new, stale):
    copy = shutil.copytree(own_source().folder, tmp_path / "lowland", ignore=shutil.ignore_patterns("__pycache__"))
    unchanged, changed = Source(copy), Source(copy)
    before = {kind: unchanged.fingerprint(names_in_run(run(kind))) for kind in ("none", "sam", "ema")}
    text = (copy / file).read_text(encoding="utf-8")
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    after = {kind: changed.fingerprint(names_in_run(run(kind))) for kind in before}
    assert {kind for kind in before if before[kind] != after[kind]} == stale
