"""Where a prior hands its tensors to a network, and takes them back.

States are float32 or float64 and dense; a network may compute on another device, in
another precision and memory layout, or compiled.  Times stay in single precision:
bfloat16 tells only every fourth of them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Border", "check_differentiable"]

_PRECISIONS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Border:
    """Of one network.  What is no `nn.Module` gets tensors as they are.

    Attributes
    ----------
    dtype : torch.dtype or None
        Of the network's weights, and of what it is given; None: as it comes.
    channels_last, compile : bool
    """

    def __init__(self, network: Any):
        self.network = network
        self.channels_last = self.compile = False
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}

    @property
    def dtype(self) -> torch.dtype | None:
        if not isinstance(self.network, nn.Module):
            return None
        parameters = self.network.parameters()
        return next((p.dtype for p in parameters if p.is_floating_point()), None)

    def to(
        self,
        device: str | torch.device | None = None,
        *,
        dtype: torch.dtype | None = None,
        channels_last: bool | None = None,
        compile: bool | None = None,
    ) -> None:
        """Moves and converts the network in place; None leaves things as they are."""
        if not isinstance(self.network, nn.Module):
            if not (dtype is channels_last is compile is None):
                raise TypeError(
                    "dtype, channels_last and compile are for networks that are a "
                    f"torch.nn.Module, got {type(self.network).__name__}"
                )
            return
        if dtype is not None and dtype not in _PRECISIONS:
            names = ", ".join(str(known) for known in _PRECISIONS)
            raise ValueError(f"a network's dtype must be one of {names}, got {dtype!r}")
        self.network.to(device=device, dtype=dtype)
        if channels_last is not None:
            self.channels_last = channels_last
            layout = torch.channels_last if channels_last else torch.contiguous_format
            nn.utils.convert_conv2d_weight_memory_format(self.network, layout)
        if compile is not None:
            self.compile = compile

    def cast(self, x: Tensor) -> Tensor:
        """x as the network takes it."""
        x = x.to(self.dtype or x.dtype)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The network, or a method of it, as it is to be called."""
        if not self.compile:
            return function
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function)
        return self._compiled[function]

    def __call__(
        self, function: Callable[..., Tensor], x: Tensor, *others: Any
    ) -> Tensor:
        """What the network, or a method of it, makes of x and others: dense, in the
        dtype of x, differentiable."""
        out = self.compiled(function)(self.cast(x), *others)
        what = getattr(function, "__name__", type(function).__name__)
        if not isinstance(out, Tensor):
            raise TypeError(f"{what} must return a tensor, got {type(out).__name__}")
        check_differentiable(out, x, what)
        return out.to(x.dtype, memory_format=torch.contiguous_format)

    def spec(self) -> dict[str, Any]:
        """What is not the default, as JSON values."""
        options = {"channels_last": self.channels_last, "compile": self.compile}
        spec: dict[str, Any] = {name: True for name, on in options.items() if on}
        if self.dtype not in (None, torch.float32):
            spec["dtype"] = str(self.dtype).removeprefix("torch.")
        return spec


def check_differentiable(out: Tensor, x: Tensor, what: str) -> None:
    """TypeError for what has no gradient with respect to x where one is asked for."""
    if x.requires_grad and torch.is_grad_enabled() and not out.requires_grad:
        raise TypeError(
            f"the method differentiates through the prior, and {what} returned an "
            "array without a gradient: compute it by torch from what it is given"
        )
