"""Data: files in, batches out.

Files -> `load` -> TensorDataset -> `random_split` -> `Standardize` -> DataLoader -> Tensors.
"""

from scratchnet.data.dataset import Dataset, Mapped, Subset, TensorDataset, clean, gather, random_split
from scratchnet.data.idx import read_idx, write_idx
from scratchnet.data.loader import DataLoader
from scratchnet.data.sources import FASHION_MNIST_CLASSES, load
from scratchnet.data.standardize import Standardize

__all__ = [
    "FASHION_MNIST_CLASSES",
    "DataLoader",
    "Dataset",
    "Mapped",
    "Standardize",
    "Subset",
    "TensorDataset",
    "clean",
    "gather",
    "load",
    "random_split",
    "read_idx",
    "write_idx",
]
