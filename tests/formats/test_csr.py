"""``csr``: what the contract of formats does not ask of all."""

from __future__ import annotations

import pytest
import torch

from sparsekern.formats import FORMATS
from tests.formats.test_contract import make

BROKEN = {
    "crow": lambda state: state["crow"].__setitem__(1, 99),
    "col": lambda state: state["col"].__setitem__(0, -1),
    "col_high": lambda state: state["col"].__setitem__(0, 9),
    "repeated": lambda state: state["col"].__setitem__(1, int(state["col"][0])),
    "matrix": lambda state: state.__setitem__("values", state["values"][None]),
}


@pytest.mark.parametrize("what", list(BROKEN))
def test_corrupt_csr_checkpoint_is_refused(what: str) -> None:
    """A sentence, no crash in native code, and the layer stays as it was."""
    stored, dense, _ = make("csr")
    state = {k: v.clone() for k, v in stored.state_dict().items()}
    BROKEN[what](state)
    with pytest.raises(RuntimeError, match=r"Expected (crow|col|values) to"):
        stored.load_state_dict(state)
    assert torch.equal(stored.to_dense(), dense)
    stored.validate()


def test_csr_index_of_another_shape() -> None:
    stored, _, _ = make("csr")
    values, index = stored.parameter.detach(), stored.index
    for shape, sentence in (
        ((7, 9), r"Expected crow of index to have shape \(8,\). Got \(7,\)"),
        ((6, 8), r"Expected crow_t of index to have shape \(9,\). Got \(10,\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            FORMATS["csr"](values, index, shape)
    with pytest.raises(ValueError, match="Expected values to have shape"):
        FORMATS["csr"](values[1:], index, (6, 9))
    with pytest.raises(ValueError, match="Expected perm of index to have shape"):
        FORMATS["csr"](values, index._replace(perm=index.perm[1:]), (6, 9))
    with pytest.raises(TypeError, match="Expected index to be a CsrIndex. Got tuple"):
        FORMATS["csr"](values, tuple(index), (6, 9))
