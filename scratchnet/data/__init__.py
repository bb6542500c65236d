"""Data: files in, batches out.

Files -> `load`, `from_csv`, ... -> `random_split` -> `Standardize`, `Augmented` -> DataLoader -> Tensors.
"""

from .augment import Augmented, RandomCrop, RandomHorizontalFlip
from .collate import ConcatDataset, default_collate, pad_sequence
from .dataset import Dataset, Mapped, Subset, TensorDataset, clean, gather, random_split
from .files.content import data_files
from .files.idx import read_idx, write_idx
from .images import ImageInputs, image_folder, read_image
from .large.folder import from_folder
from .large.scattered import ScatteredRows
from .large.spark import from_spark
from .large.stored import StoredRows
from .loader import DataLoader
from .samplers import (
    BucketSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from .series import SeriesInputs, audio_folder, from_ts
from .sources import FASHION_MNIST_CLASSES, load
from .standardize import PiecewiseLinear, Standardize
from .tables import TableInputs, from_csv, from_npz, ratings_csv
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
    "PiecewiseLinear",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomSampler",
    "Sampler",
    "ScatteredRows",
    "SequentialSampler",
    "SeriesInputs",
    "Standardize",
    "StoredRows",
    "Subset",
    "SubsetRandomSampler",
    "TableInputs",
    "TensorDataset",
    "TextInputs",
    "WeightedRandomSampler",
    "audio_folder",
    "clean",
    "data_files",
    "default_collate",
    "from_csv",
    "from_folder",
    "from_npz",
    "from_spark",
    "from_ts",
    "gather",
    "image_folder",
    "load",
    "pad_sequence",
    "random_split",
    "ratings_csv",
    "read_idx",
    "read_image",
    "text_csv",
    "write_idx",
]
