"""Data sets: what a person names -> test images, training images, and what is right."""

from mimeval.datasets.dataset import Dataset, Relevance, Split
from mimeval.datasets.spec import FAMILIES, open_dataset

__all__ = ["FAMILIES", "Dataset", "Relevance", "Split", "open_dataset"]
