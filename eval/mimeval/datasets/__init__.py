"""Data sets: test images, training images and ground truth, opened by name or path."""

from mimeval.datasets.dataset import Dataset, Relevance, Split
from mimeval.datasets.spec import FAMILIES, open_dataset

__all__ = ["FAMILIES", "Dataset", "Relevance", "Split", "open_dataset"]
