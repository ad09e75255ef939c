"""Data sets with sample ids and fixed splits, by function or by name (`load`)."""

from lowland.data.digits import digits
from lowland.data.draws import Draws
from lowland.data.indexed import Indexed, LoaderBatches, stable_id
from lowland.data.noise import symmetric_noise
from lowland.data.registry import DATASETS, load
from lowland.data.resident import Augment, TensorBatches, TensorData
from lowland.data.splits import DataSplits, stratified_split, with_label_noise, with_subsample

__all__ = [
    "DATASETS",
    "load",
    "DataSplits",
    "TensorData",
    "TensorBatches",
    "Indexed",
    "LoaderBatches",
    "stable_id",
    "Augment",
    "Draws",
    "digits",
    "symmetric_noise",
    "stratified_split",
    "with_label_noise",
    "with_subsample",
]
