"""Real data that is bundled with a dependency, made-up data for tests, and batches of both."""

from sparsekern.data.batches import batches, steps_per_epoch
from sparsekern.data.dataset import DATASETS, Dataset, Source
from sparsekern.data.digits import Digits
from sparsekern.data.synthetic import Synthetic

__all__ = [
    "DATASETS",
    "Dataset",
    "Digits",
    "Source",
    "Synthetic",
    "batches",
    "steps_per_epoch",
]
