"""Data sets with sample ids and fixed splits, by function or by name (`load`), and augmentations of their batches."""

from lowland.core.names import AUGMENTATIONS, DATASETS
from lowland.data.augment import Compose, CutMix, Cutout, Flip, Mixup, RandomCrop, standard
from lowland.data.cifar import cifar10, cifar100, svhn
from lowland.data.digits import digits
from lowland.data.draws import Draws
from lowland.data.folders import ImageFolder, folders
from lowland.data.huggingface import huggingface
from lowland.data.indexed import Indexed, LoaderBatches, stable_id
from lowland.data.kornia import Kornia
from lowland.data.mnist import mnist
from lowland.data.mnist1d import mnist1d
from lowland.data.registry import augmentation, load
from lowland.data.resident import Augment, TensorBatches, TensorData
from lowland.data.splits import DataSplits, stratified_split, symmetric_noise, with_label_noise, with_subsample
from lowland.data.text import text, topics

__all__ = ["DATASETS", "load", "DataSplits", "TensorData", "TensorBatches", "Indexed", "LoaderBatches", "stable_id"]
__all__ += ["digits", "mnist", "mnist1d", "cifar10", "cifar100", "svhn", "folders"]
__all__ += ["text", "topics", "huggingface", "ImageFolder"]
__all__ += ["Augment", "Draws", "Compose", "RandomCrop", "Flip", "Cutout", "Mixup", "CutMix", "Kornia", "standard"]
__all__ += ["AUGMENTATIONS", "augmentation"]
__all__ += ["symmetric_noise", "stratified_split", "with_label_noise", "with_subsample"]
