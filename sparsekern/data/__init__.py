"""Real data that comes with Python and its packages or lies in a folder, made-up data, batches."""

from sparsekern.data.batches import batches, steps_per_epoch
from sparsekern.data.cifar import Cifar10, Cifar100
from sparsekern.data.dataset import DATASETS, Dataset, Source
from sparsekern.data.digits import Digits
from sparsekern.data.glue import Glue
from sparsekern.data.synthetic import Synthetic, SyntheticText
from sparsekern.data.text import Text

__all__ = [
    "DATASETS",
    "Cifar10",
    "Cifar100",
    "Dataset",
    "Digits",
    "Glue",
    "Source",
    "Synthetic",
    "SyntheticText",
    "Text",
    "batches",
    "steps_per_epoch",
]
