"""Results as pandas frames, and as CSV and Parquet files that keep the units of their columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lowland.core.errors import optional_import, require
from lowland.core.schema import UNITS
from lowland.results.files import replacing, write_atomically

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_UNITS: Final = {
    **UNITS,
    "epoch": "epochs",
    "epochs": "epochs",
    "step": "steps",
    "steps": "steps",
    "seconds": "s",
    "passes": "forward-backward passes",
    "evaluation_passes": "forward passes",
    "learning_rate": "weight units per gradient unit",
    "trace": "loss per squared unit of weight",
    "filter_trace": "loss per squared normalized direction",
    "picture_curvature": "loss per squared normalized direction",
    "kinks": "loss per squared normalized direction",
    "sam_sharpness": "loss",
    "stability": "1",
}
"""Unit of a column by its name, or by its end (``train_loss`` is a loss)."""


def to_frame(result: Any) -> pd.DataFrame:
    """Return a result as a pandas frame.

    Args:
        result: A Dataset (one row per point, snapshot, pair ...; coordinates are columns, single numbers repeated), a
            `Run` (its metrics, one row per epoch), `Runs` (one row per run), or a frame itself.

    Returns:
        The frame; ``frame.attrs["units"]`` holds the units of its columns.

    Example:
        >>> from lowland.core.schema import new_surface
        >>> frame = to_frame(new_surface([0.0, 1.0]))
        >>> list(frame.columns), frame.attrs["units"]["x"]
        (['x', 'loss', 'status', 'error'], 'normalized direction')
    """
    import pandas as pd
    import xarray as xr

    if isinstance(result, xr.Dataset):
        frame = result.to_dataframe().reset_index() if result.sizes else pd.DataFrame([scalars(result)])
        units = {str(name): str(variable.attrs.get("units", "")) for name, variable in result.variables.items()}
        return _with_units(frame, {name: unit for name, unit in units.items() if unit})
    if isinstance(result, pd.DataFrame):
        return result
    made: Any = getattr(result, "to_frame", None)
    require(made is not None, "result", "must be a Dataset, a frame, a run or runs", type(result).__name__)
    frame = made()
    return frame if isinstance(frame, pd.DataFrame) else pd.DataFrame(frame)


def frame_of_rows(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows of numbers as a frame with units."""
    import pandas as pd

    return _with_units(pd.DataFrame.from_records([dict(row) for row in rows]))


def scalars(result: xr.Dataset) -> dict[str, float]:
    """Return the variables of a result that are single numbers."""
    return {str(name): float(value) for name, value in result.data_vars.items() if value.ndim == 0}


def _with_units(frame: pd.DataFrame, known: Mapping[str, str] | None = None) -> pd.DataFrame:
    units = dict(known or {})
    for column in map(str, frame.columns):
        plain = column.removesuffix("_se").removesuffix("_residual")
        found = next((unit for name, unit in _UNITS.items() if plain == name or plain.endswith(f"_{name}")), None)
        if found is not None:
            units.setdefault(column, found)
    frame.attrs["units"] = {str(column): units[str(column)] for column in frame.columns if str(column) in units}
    return frame


def to_csv(result: Any, path: str | Path) -> Path:
    """Write a result (as in `to_frame`) as CSV, its units in ``PATH-metadata.json`` as "CSV on the Web" has them."""
    frame, target = to_frame(result), Path(path)
    units = frame.attrs.get("units", {})
    columns = [{"name": str(c), "titles": str(c), **({"unit": units[c]} if c in units else {})} for c in frame.columns]
    content = {"@context": "http://www.w3.org/ns/csvw", "url": target.name, "tableSchema": {"columns": columns}}
    write_atomically(target, frame.to_csv(index=False, lineterminator="\n").encode())
    write_atomically(target.with_name(f"{target.name}-metadata.json"), (json.dumps(content, indent=1) + "\n").encode())
    return target


def to_parquet(result: Any, path: str | Path) -> Path:
    """Write a result (as in `to_frame`) as Parquet, the unit of a column in its field's metadata (``units``)."""
    arrow: Any = optional_import("pyarrow", extra="parquet", needed_for="to_parquet")
    parquet: Any = optional_import("pyarrow.parquet", extra="parquet", needed_for="to_parquet")
    frame, target = to_frame(result), Path(path)
    units = frame.attrs.get("units", {})
    table = arrow.Table.from_pandas(frame, preserve_index=False)
    fields = [
        field.with_metadata({"units": units[field.name]}) if field.name in units else field for field in table.schema
    ]
    with replacing(target) as temporary:
        parquet.write_table(table.cast(arrow.schema(fields, metadata=table.schema.metadata)), temporary)
    return target
