"""What Lowland must do without: the network, optional packages, torch where only results are read, and its own source tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

BLOCK = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):  # as where the package is not installed: looked for, and not there
    return None if name.split(".")[0] in {names!r} else find(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)  # called on instances too
"""

OFFLINE = """
import ipaddress, socket
real_connect, real_lookup = socket.socket.connect, socket.getaddrinfo
def connect(self, address):
    if self.family != socket.AF_UNIX and not ipaddress.ip_address(address[0]).is_loopback:
        raise AssertionError(f"a connection to {address}")
    return real_connect(self, address)
def lookup(host, *rest, **options):
    if host not in (None, "localhost", "127.0.0.1", "::1"):
        raise AssertionError(f"a look-up of {host}")
    return real_lookup(host, *rest, **options)
socket.socket.connect = socket.socket.connect_ex = connect
socket.getaddrinfo = lookup
socket.gethostbyname = lookup
"""

# What must be importable nowhere. Pillow stays: matplotlib needs it; fsspec stays: Fabric does.
OPTIONAL = {
    "ray",
    "sklearn",
    "mlxtend",
    "mnist1d",
    "foolbox",
    "eagerpy",
    "transformers",
    "accelerate",
    "datasets",
    "kornia",
    "lightning",
    "pytorch_lightning",
    "curvlinops",
    "optuna",
    "tensorboard",
    "h5py",
    "pyarrow",
    "imageio_ffmpeg",
}


def python(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)},
    )


def test_train_survey_and_report_without_network_and_without_optional_packages(tmp_path):
    code = (
        BLOCK.format(names=OPTIONAL)
        + OFFLINE
        + """
from lowland.cli.main import main
run = sys.argv[1]
fit = ["--data.name", "tests.foreign_cases:splits", "--model.name", "tests.foreign_cases:net", "--epochs", "2"]
assert main(["fit", run, *fit, "--optimizer.method", "sam", "--optimizer.options.rho", "0.1", "--quiet"]) == 0
assert main(["surface", run, "--points", "[3, 3]", "--quiet"]) == 0
assert main(["line", run, "--points", "3", "--quiet"]) == 0
assert main(["trajectory", run, "--points", "[3, 3]", "--quiet"]) == 0
assert main(["curvature", run, "--trace_products", "6", "--directions", "3", "--quiet"]) == 0
assert main(["report", run, "--output", run + "/report.html", "--quiet"]) == 0
assert main(["figure", run + "/surfaces/plane.zarr", "--output", run + "/figure.pdf", "--quiet"]) == 0
assert main(["doctor"]) == 0
"""
    )
    done = python(code, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<html" in page and 'src="http' not in page


def test_the_block_of_the_network_works():
    done = python(OFFLINE + "import urllib.request\nurllib.request.urlopen('http://example.org')")
    assert done.returncode != 0 and "a look-up of example.org" in done.stderr


USES = {
    "ray": "from lowland.engine import ray; ray._connect(None, 1, 1, None)",
    "remote": "import lowland; lowland.results.open('s3://bucket/surface.zarr')",
    "data": "import lowland; lowland.data.load('digits')",
    "robust": "from lowland.robustness.attacks import attacked; attacked(None, None, None, 1, 0).__enter__()",
    "hf": "import lowland; lowland.models.create('huggingface', model_type='bert')",
    "augment": "from lowland.data.kornia import kornia_by_name; kornia_by_name('RandomErasing')",
    "lightning": "import lowland.integrations.lightning",
    "optuna": "from lowland.study.search import suggest; next(suggest(None, 'a', lambda n, c: 0.0))",
    "parquet": "import lowland; lowland.results.to_parquet([], 'a.parquet')",
    "hdf5": "import lowland; lowland.results.read_li_hdf5('a.h5')",
    "film": "from lowland.viz import movie; movie._mp4(movie.Movie(None), 'a.mp4')",
}
"""Extra -> a call that needs it."""

NOT_ASKED_FOR = {
    "curvlinops": "operators are handed in",
    "tensorboard": "Fabric's own logger asks for it",
    "peft": "wrapped models are handed in",
    "trackers": "the trainer's own logger is handed in",
    "dev": "for developers",
    "docs": "for developers",
}


def test_every_extra_is_asked_for_by_name_where_it_is_missing():
    assert set(EXTRAS) == set(USES) | set(NOT_ASKED_FOR)
    code = (
        BLOCK.format(names=OPTIONAL)
        + f"""
import importlib, json, pkgutil
import lowland
from lowland.core import errors
broken = {{}}
for module in pkgutil.walk_packages(lowland.__path__, "lowland."):
    try:
        importlib.import_module(module.name)
    except errors.MissingExtra as error:
        broken[module.name] = str(error)
said = {{}}
sys.modules["fsspec"] = None
for extra, use in {USES!r}.items():
    try:
        exec(use)
        said[extra] = "nothing"
    except Exception as error:
        said[extra] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps([broken, said]))
"""
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    broken, said = json.loads(done.stdout.splitlines()[-1])
    # only the files that exist for one package need it to be imported at all
    assert {name.split(".")[1] for name in broken} <= {"integrations"}, broken
    for extra, text in said.items():
        assert text.startswith("MissingExtra") and f'pip install "lowland[{extra}]"' in text, (extra, text)


@pytest.mark.parametrize("room", ["", ".results", ".viz", ".report", ".workflows", ".cli.main", ".cli.doctor"])
def test_what_reads_and_draws_imports_no_torch_and_nothing_optional(room):
    done = python(f"import sys, lowland{room}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))")
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert not loaded & (OPTIONAL - {"pyarrow"} | {"torch", "lightning_fabric"})  # pandas takes pyarrow where it is
    if room in ("", ".cli.main"):  # what `import lowland` and `lowland --help` cost
        assert not loaded & {"numpy", "xarray", "zarr", "matplotlib", "plotly", "scipy", "rich", "jsonargparse", "yaml"}


def test_a_survey_imports_neither_a_compiler_nor_fabric_and_fabric_no_torchmetrics():
    """Each takes as long as torch, in every process; stores are opened by the driver, and by no worker."""
    code = """
import sys, torch, lowland as ll
import lowland.landscape.surface_task, lowland.curvature.probe
assert not {"xarray", "zarr", "pandas", "scipy"} & sys.modules.keys()
import lowland.workflows.sources
model = torch.nn.Linear(4, 3)
risk = ll.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), [(torch.eye(4), torch.arange(4) % 3)])
ll.landscape.evaluate(risk, ll.landscape.random_plane(model), ll.landscape.grid(2, 2, extent=1.0))
print(*sys.modules)
made = []
def mixing(output, target):  # is compiled when it is first called, and seen through all the same
    made or made.append(torch.compile(lambda output, target: (output - target) ** 2, backend="eager"))
    return made[0](output, target)
risk = ll.EmpiricalRisk(torch.nn.Linear(4, 1), mixing, [(torch.eye(4), torch.ones(4))])
try:
    risk.check_deterministic()
except ll.core.errors.InputError as error:
    assert "samples all with all" in str(error), error
else:
    raise SystemExit("a loss that mixes samples was taken")
data = dict.fromkeys(("train", "validation", "test"), [(torch.eye(4), torch.arange(4) % 3)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ll.training.fit(model, optimizer, torch.nn.CrossEntropyLoss(), data, epochs=1)
print(*sys.modules)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    surveyed, trained = (set(line.split()) for line in done.stdout.splitlines()[-2:])
    assert not surveyed & {"torch._dynamo", "sympy", "lightning_fabric", "torchmetrics", "scipy.stats", "transformers"}
    assert "lightning_fabric" in trained and not trained & {"torchmetrics", "scipy.stats", "transformers"}


def test_doctor_names_what_is_missing_and_how_to_get_it(tmp_path):
    code = (
        BLOCK.format(names=OPTIONAL | {"torch"})
        + """
import importlib.metadata as metadata
real = metadata.version
def version(name):
    if name in ("h5py", "torch"):
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
from lowland.cli.main import main
sys.exit(main(["doctor", "--json"]))
"""
    )
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["install"]["hdf5"] == 'pip install "lowland[hdf5]"' and found["needed"]["torch"] == ""
    assert "cannot be imported" in found["machine"]["torch"] and any(
        "torch missing" in line for line in found["advice"]
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy_of_sources(folder))]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(folder.glob("lowland-*.tar.gz"))) == 1  # the wheel is built from the sdist
    return next(folder.glob("lowland-*.whl"))


def copy_of_sources(folder: Path) -> Path:
    """Return a copy of what git tracks or would track, so that the build leaves nothing behind."""
    place = folder / "sources"
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "src",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes((ROOT / name).read_bytes())
    return place


@pytest.mark.slow
def test_the_wheel_holds_everything_and_works_without_the_source_tree(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    source = ROOT / "src"
    wanted = {
        str(path.relative_to(source))
        for path in (source / "lowland").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= inside, sorted(wanted - inside)
    assert "lowland/py.typed" in inside and any(name.endswith("licenses/LICENSE") for name in inside)
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True)
    code = f"""
import sys
sys.path.insert(0, {str(target)!r})
import lowland
assert lowland.__file__.startswith({str(target)!r}), lowland.__file__
from lowland.cli.main import main
for words in (["--help"], ["demo", "--help"]):
    try:
        assert main(words) == 0
    except SystemExit as stop:
        assert stop.code == 0
run = sys.argv[1]
assert main(["fit", run, "--data.options.train_size", "60", "--model.options.width", "4", "--epochs", "1", "--quiet"]) == 0
assert main(["report", run, "--output", run + "/report.html", "--quiet"]) == 0
assert main(["list", "--json"]) == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (target / "bin" / "lowland").is_file()
