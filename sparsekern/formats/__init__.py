"""How kept weights are stored. A pattern says what a mask may look like; a plan, which format."""

from sparsekern.formats.base import FORMATS, FormatBytes, SparseFormat, TopologyChange
from sparsekern.formats.bsr import BsrFormat
from sparsekern.formats.condensed import CondensedFormat
from sparsekern.formats.csr import CsrFormat
from sparsekern.formats.masked import MaskedFormat
from sparsekern.formats.plan import LayerPlan, Plan, choose_format, choose_kernel

__all__ = [
    "FORMATS",
    "BsrFormat",
    "CondensedFormat",
    "CsrFormat",
    "FormatBytes",
    "LayerPlan",
    "MaskedFormat",
    "Plan",
    "SparseFormat",
    "TopologyChange",
    "choose_format",
    "choose_kernel",
]
