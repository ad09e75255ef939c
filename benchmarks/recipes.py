"""What the small runs of all recipes give: test accuracy, train loss, passes and seconds.

Each is the run of ``lowland fit --config NAME --scale small`` with one seed on one thread; finished runs in the folder
are not trained again. One seed of a small run says that a recipe works, and nothing about its method.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowland.core.provenance import provenance
from lowland.workflows import read_recipe, recipe_names
from lowland.workflows.fitting import fit as fit_run
from lowland.workflows.recipe import small

HEAD = ("recipe", "epochs, batch", "train loss", "test accuracy", "passes forward and backward", "seconds")


def measure(name: str, folder: Path, threads: int) -> dict[str, Any]:
    spec = replace(small(read_recipe(name).spec()), folder=str(folder / f"{name}-small"), threads=threads)
    result = fit_run(spec).result
    kept = ("test", "passes", "seconds", "epoch", "created", "versions", "revision")
    row = {key: result[key] for key in kept} | {"train_loss": result["chosen"]["train_loss"]}
    return {"recipe": name, "epochs": spec.epochs, "batch_size": spec.batch_size, **row}


def line(row: dict[str, Any]) -> str:
    accuracy, error = (100 * row["test"][key] for key in ("accuracy", "accuracy_se"))
    cells = (
        f"`{row['recipe']}`", f"{row['epochs']}, {row['batch_size']}", f"{row['train_loss']:.3f}",
        f"{accuracy:.1f} ± {error:.1f} %", f"{row['passes']:,}", f"{row['seconds']:.0f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="recipes; none takes all")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "recipes.json")
    options = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    rows = []
    for name in options.names or recipe_names():
        rows.append(measure(name, options.folder, options.threads))
        print(line(rows[-1]), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"rows": rows, "settings": {"threads": options.threads}, **provenance()}
    options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
