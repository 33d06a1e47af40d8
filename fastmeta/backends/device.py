"""Finding the device that a user names."""

from __future__ import annotations

import torch

__all__ = ["find_device"]


def find_device(name: str | torch.device) -> torch.device:
    """The device of this name: "auto" (a GPU if PyTorch sees one), "cpu", "cuda" or "cuda:1".

    Raises:
        ValueError: no such device here, with the reason.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ValueError(f'device must be "auto", "cpu", "cuda" or "cuda:N", not {str(name)!r}')
    reason = _why_no_gpu()
    if reason is not None:
        raise ValueError(f'device "{name}": {reason}')
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ValueError(f'device "{name}": there are {count} GPUs, cuda:0 to cuda:{count - 1}')
    return torch.device("cuda", torch.cuda.current_device()) if device.index is None else device


def _why_no_gpu() -> str | None:
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) was built without CUDA"
    return "PyTorch sees no NVIDIA GPU (no driver, or CUDA_VISIBLE_DEVICES hides it)"
