"""The door to what computes: what comes in is checked and made dense here, once."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "as_array",
    "as_tensor",
    "check_alike",
    "check_finite",
    "check_images",
    "dtype_name",
    "in_full",
    "out_of_range",
    "placed",
    "prepare",
]

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a precision the core has; TypeError for any other dtype."""
    if dtype not in _DTYPES:
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    return _DTYPES[dtype]


def as_tensor(x: Any, name: str) -> Tensor:
    """A tensor over the same memory where possible; TypeError for anything else."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, np.ndarray):
        if x.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name} must be float32 or float64, got {x.dtype}")
        native = np.ascontiguousarray(x)
        return torch.from_numpy(native if native.flags.writeable else native.copy())
    raise TypeError(f"{name} must be a tensor or an array, got {type(x).__name__}")


def as_array(x: Any, name: str) -> np.ndarray:
    """A NumPy array of what a user gives as kernel or mask; a tensor of another device
    is copied to the CPU.  TypeError for complex or half precision, what has no values
    and what is to be differentiated by."""
    if isinstance(x, Tensor):
        if x.requires_grad:
            raise TypeError(
                f"{name} is a constant of the operator, got a tensor that requires "
                "grad: detach() it, or differentiate by it with blind_blur or warp"
            )
        if x.is_meta or x.dtype in (torch.bfloat16, torch.float16):
            raise TypeError(
                f"{name} must have real values, got {x.dtype} on {x.device}"
            )
        x = x.detach().cpu().resolve_conj().resolve_neg().numpy()
    a = np.asarray(x)
    if a.dtype.kind == "c" or a.dtype == np.float16:
        raise TypeError(f"{name} must be real, in single or double, got {a.dtype}")
    return a


def in_full(device: torch.device) -> AbstractContextManager[Any]:
    """Without `torch.autocast`: half precision is for networks, measurements and their
    gradients keep the precision of the images."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def prepare(x: Any, name: str) -> Tensor:
    """Image batch as the backends take it: (B, C, H, W), float, dense, detached.

    Raises
    ------
    TypeError
        For a dtype other than float32 and float64.
    ValueError
        For another number of axes.
    """
    x = as_tensor(x, name)
    check_images(x, name)
    return x.detach().resolve_conj().resolve_neg().contiguous()


def placed(x: Tensor, device: str | torch.device | None) -> Tensor:
    """x where the run is to be; ValueError for a device that cannot be used."""
    device = x.device if device is None else device
    try:
        where = torch.device(device)
        if where.type == "meta":
            raise RuntimeError("it holds no values")
        torch.zeros(1, dtype=torch.float64, device=where)  # sums are taken in it
        return x.to(where)
    except (ImportError, NotImplementedError):  # of devices that torch can have
        raise ValueError(
            f"device {device} cannot be used: this torch is built without it"
        ) from None
    # torch built without CUDA raises an AssertionError
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {device} cannot be used: {reason}") from None


def check_images(x: Tensor, name: str) -> None:
    """The checks of `prepare`, which torch.compile can look through."""
    if x.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float32 or float64, got {x.dtype}")
    if x.ndim != 4:
        raise ValueError(
            f"{name} must have 4 axes (batch, channels, height, width), "
            f"got shape {tuple(x.shape)}"
        )


def check_alike(**pair: Tensor) -> None:
    """TypeError unless the two have one dtype; ValueError unless one device."""
    (one, a), (other, b) = pair.items()
    if a.dtype != b.dtype:
        raise TypeError(
            f"{one} and {other} must have one dtype, got {a.dtype} and {b.dtype}"
        )
    if a.device != b.device:
        raise ValueError(
            f"{one} and {other} must be on one device, got {a.device} and {b.device}"
        )


def check_finite(x: Tensor, name: str) -> None:
    """ValueError that counts the entries which are NaN or infinite."""
    if x.sum().isfinite():  # a tenth of the time; an overflow is no harm
        return
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise ValueError(f"{name} has {bad} entries that are NaN or infinite")


def out_of_range(x: Tensor, name: str, limit: float) -> str | None:
    """What to say of x where an entry is beyond the limit, as those of 8-bit images."""
    most = x.abs().max().item()
    if most > limit:
        return f"{name} has values up to {most:.4g}: images are in [-1, 1]"
    return None
