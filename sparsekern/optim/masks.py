"""Where a masked optimiser takes its masks from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from sparsekern._checks import check_mask, check_model
from sparsekern.formats import MaskedFormat
from sparsekern.ops import mask as mask_ops

Masks = Mapping[Tensor, Tensor | None]


class MaskSource:
    """Bit masks by parameter: those that were given, and those of a model's dense masters.

    A model's masks are looked up anew for every step, so layers may become sparse, change their
    masks or become compact at any time. Whoever holds a parameter without a mask is dense.
    """

    def __init__(self, model: nn.Module | None) -> None:
        if model is not None:
            check_model(model)
        self.model = model
        self.given: dict[Tensor, Tensor] = {}

    def set(self, masks: Masks, held: Iterable[Tensor]) -> None:
        """Gives parameters new masks (None: no mask); the others keep theirs.

        Raises:
            TypeError, ValueError: not a parameter that the optimiser holds, or one whose format in
                the model has a mask already; another shape, dtype or device; nothing is changed.
        """
        if not isinstance(masks, Mapping):
            raise TypeError(
                f"Expected masks to map parameters to bool tensors. Got {type(masks).__name__}."
            )
        known = {id(parameter) for parameter in held}
        own = {id(parameter) for parameter in self.of_model()}
        for parameter, mask in masks.items():
            if id(parameter) not in known:
                got = tuple(parameter.shape) if isinstance(parameter, Tensor) else repr(parameter)
                raise ValueError(
                    f"Expected masks to name parameters of the optimizer. Got {got}, another one."
                )
            if id(parameter) in own:
                raise ValueError(
                    "Expected masks to name parameters that have none in the model. Got one of "
                    f"shape {tuple(parameter.shape)}: change it with the layer's set_mask."
                )
            if mask is not None:
                check_mask(mask, tuple(parameter.shape), parameter.device)
        for parameter, mask in masks.items():
            if mask is None:
                self.given.pop(parameter, None)
            else:
                self.given[parameter] = mask_ops.pack_bits(mask)

    def bits(self) -> dict[Tensor, Tensor]:
        """The bit mask of every parameter that has one now."""
        return {**self.given, **self.of_model()}

    def of_model(self) -> dict[Tensor, Tensor]:
        """Those of the model's dense masters."""
        if self.model is None:
            return {}
        modules = (each for each in self.model.modules() if isinstance(each, MaskedFormat))
        return {each.weight: each.bits for each in modules}
