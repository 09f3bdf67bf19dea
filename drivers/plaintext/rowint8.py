"""A linear layer in 8-bit integers: what makes embedding fast on a CPU with VNNI.

Weights are rounded once, to 127 steps of each output's largest weight. Inputs are rounded row by
row, to the range of that row: a token's result does not depend on its neighbours in the batch. The
sum over inputs is exact, in 32-bit integers.

Some inputs are many times larger than others in nearly every row, and would leave those a few
steps. Where ranges were measured, part of the difference is moved into the weights.
Source: SmoothQuant, arXiv 2211.10438, equation 4.
"""

from typing import Any, Final

import torch

__all__ = ["RowInt8", "is_supported"]

_STEPS: Final = 127
_MIDDLE: Final = 128
"""The kernel takes unsigned inputs: what is zero is stored as this."""
_MOVED: Final = 0.6
"""How much of the difference between inputs goes into the weights: 0 none, 1 all of it."""
_TINY: Final = 1e-12
"""Above 0, that a row of zeros stays one, and far below any range that matters."""


def is_supported() -> bool:
    """True where the kernel is, and is faster than float32."""
    is_vnni = getattr(torch.cpu, "_is_vnni_supported", bool)
    return hasattr(torch.ops.onednn, "qlinear_pointwise") and bool(is_vnni())


class RowInt8:
    """`x @ weight.T + bias`, nearly.

    `ranges`: the largest magnitude met at each input; None: not known. `floor`: no input is below
    it; all 255 steps then serve what is above. Not both.
    """

    def __init__(
        self,
        weight: Any,
        bias: Any | None,
        ranges: Any | None = None,
        floor: float | None = None,
    ) -> None:
        weight = weight.detach().float()
        self._shrink = None
        if ranges is not None:
            largest = weight.abs().amax(0).clamp_(min=_TINY)
            shrink = (ranges.clamp(min=_TINY) ** _MOVED / largest ** (1 - _MOVED)).clamp_(min=_TINY)
            shrink /= shrink.mean()
            weight = weight * shrink
            self._shrink = 1 / shrink
        scale = weight.abs().amax(1).clamp_(min=_TINY) / _STEPS
        rounded = torch.round(weight / scale[:, None]).to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded.contiguous(), None)
        # An input is `step * range of its row`: the steps' size is folded into the weights'.
        self._steps = _STEPS if floor is None else 2 * _STEPS
        self._scale = (scale / self._steps).contiguous()
        self._no_shift = torch.zeros(len(weight), dtype=torch.long)
        self._floor = floor
        self._bias = torch.zeros(len(weight)) if bias is None else bias.detach().float()
        if floor is not None:
            self._bias = self._bias + floor * rounded.float().sum(1) * scale

    def __call__(self, x: Any) -> Any:
        """float32 [..., inputs] -> float32 [..., outputs]. With a floor, `x` is spoilt."""
        rows = x.reshape(-1, x.shape[-1])
        if self._floor is None:
            rows = rows if self._shrink is None else rows * self._shrink
            span = rows.abs().amax(-1, keepdim=True).add_(_TINY)
            steps = (rows * (self._steps / span)).round_().to(torch.int8)
            # The same bits as 128 more, unsigned.
            steps = steps.view(torch.uint8).bitwise_xor_(_MIDDLE)
            zero = _MIDDLE
        else:
            rows = rows.sub_(self._floor)
            span = rows.amax(-1, keepdim=True).add_(_TINY)
            # By way of signed bytes: to unsigned ones torch converts slowly.
            steps = rows.mul_(self._steps / span).sub_(_MIDDLE).round_().to(torch.int8)
            steps = steps.view(torch.uint8).bitwise_xor_(_MIDDLE)
            zero = 0
        sums = torch.ops.onednn.qlinear_pointwise(
            *(steps, 1.0, zero, self._weight, self._scale, self._no_shift),
            *(None, 1.0, 0, torch.float32, "none", [], ""),
        )
        return sums.mul_(span).add_(self._bias).view(*x.shape[:-1], -1)
