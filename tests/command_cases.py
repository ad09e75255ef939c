"""Every command's function, and the arguments that it cannot do without."""

from lowland.cli.commands import COMMANDS
from lowland.core.names import import_path

FUNCTIONS = {name: import_path("command", command.function) for name, command in COMMANDS.items()}
NEEDED = {
    "surface": ["--run", "r"],
    "line": ["--run", "r"],
    "connect": ["--run", "r"],
    "trajectory": ["--run", "r"],
    "film": ["--run", "r"],
    "curvature": ["--run", "r"],
    "robustness": ["--run", "r"],
    "report": ["--runs", "a,b"],
    "inspect": ["--path", "a.pt"],
    "merge": ["--checkpoints", "a,b"],
    "topology": ["--surface", "a.zarr"],
    "figure": ["--results", "a.zarr"],
}
