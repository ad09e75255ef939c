"""The former place of what `lowland.store.files` and `lowland.store.runs` hold."""

from lowland.store.files import write_atomically as write_atomic
from lowland.store.runs import open_run_folder

__all__ = ["open_run_folder", "write_atomic"]
