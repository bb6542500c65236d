"""Data: files in, batches out.

Files -> `load`, `from_csv`, ... -> `random_split` -> `Standardize`, `Augmented` -> DataLoader -> Tensors.
"""

from .augment import Augmented, RandomCrop, RandomHorizontalFlip
from .collate import ConcatDataset, default_collate, pad_sequence
from .dataset import Dataset, Mapped, Subset, TensorDataset, clean, gather, random_split
from .idx import read_idx, write_idx
from .loader import DataLoader
from .samplers import (
    BucketSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from .sources import FASHION_MNIST_CLASSES, load
from .standardize import Standardize

__all__ = [
    "FASHION_MNIST_CLASSES",
    "Augmented",
    "BucketSampler",
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "Mapped",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "Standardize",
    "Subset",
    "SubsetRandomSampler",
    "TensorDataset",
    "WeightedRandomSampler",
    "clean",
    "default_collate",
    "gather",
    "load",
    "pad_sequence",
    "random_split",
    "read_idx",
    "write_idx",
]
