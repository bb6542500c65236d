"""Data: files in, batches out.

Files -> `load`, `from_csv`, ... -> `random_split` -> `Standardize`, `Augmented` -> DataLoader -> Tensors.
"""

from .augment import Augmented, RandomCrop, RandomHorizontalFlip
from .collate import ConcatDataset, default_collate, pad_sequence
from .dataset import Dataset, Mapped, Subset, TensorDataset, clean, gather, random_split
from .idx import read_idx, write_idx
from .images import ImageInputs, image_folder, read_image
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
from .tables import TableInputs, from_csv, from_npz
from .text import TextInputs, text_csv

__all__ = [
    "FASHION_MNIST_CLASSES",
    "Augmented",
    "BucketSampler",
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "ImageInputs",
    "Mapped",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "Standardize",
    "Subset",
    "SubsetRandomSampler",
    "TableInputs",
    "TensorDataset",
    "TextInputs",
    "WeightedRandomSampler",
    "clean",
    "default_collate",
    "from_csv",
    "from_npz",
    "gather",
    "image_folder",
    "load",
    "pad_sequence",
    "random_split",
    "read_idx",
    "read_image",
    "text_csv",
    "write_idx",
]
