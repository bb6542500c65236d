"""Data: files in, batches out.

Files -> `load` -> TensorDataset -> `random_split` -> `Standardize` -> DataLoader -> Tensors.
"""

from .dataset import Dataset, Mapped, Subset, TensorDataset, clean, gather, random_split
from .idx import read_idx, write_idx
from .loader import DataLoader
from .sources import FASHION_MNIST_CLASSES, load
from .standardize import Standardize

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
