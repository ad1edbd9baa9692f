"""A network as the suite uses it: a timm model that takes images of any size and normalises them itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.bench.spec import Compute

COMPILED = 2**16
"""Shapes, modes and networks for which a process may compile; beyond torch's own limits passes are eager."""


class Network(nn.Module):
    """A timm model that takes images in [0, 1] of any size and normalises them as it was trained to."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        input_size: int,
        compute: Compute = Compute(),  # noqa: B008  (immutable)
    ) -> None:
        """Wraps a model.

        Args:
            model: of timm's interface.
            mean: of its inputs in [0, 1], for each channel that it takes.
            std: likewise.
            input_size: height and width that it expects; 0 is whatever comes.
            compute: in which precision and layout; a model that would be corrupted by channels_last stays contiguous.
        """
        super().__init__()
        self.model, self.input_size, self.compute = model, input_size, compute
        last = compute.layout == "channels_last" and not corrupted_by_channels_last(model)
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.model.to(memory_format=self.layout)
        self.made: dict[Callable[..., Any], Callable[..., Any]] = {}
        self.places: tuple[Any, ...] = ()
        """Where maps are before activations, once that was asked for."""
        self.pools_head_map = False
        """Whether its classifier was seen to take the mean of a map."""
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def normalised(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] as the model expects them: resized, grey repeated, normalised."""
        if self.input_size and images.shape[-1] != self.input_size:
            size = (self.input_size, self.input_size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        if images.shape[1] == 1 and self.mean.shape[1] > 1:
            images = images.expand(-1, self.mean.shape[1], -1, -1)
        return ((images - self.mean) / self.std).contiguous(memory_format=self.layout)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the model and images, compiled once, with CUDA graphs on a GPU.

        On a CPU the compiler chooses channels_last by itself, which is kept from a model that it corrupts.
        """
        if function not in self.made:
            torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = COMPILED
            how: dict[str, Any] = {"mode": "reduce-overhead"} if self.mean.is_cuda else {}
            if not self.mean.is_cuda and corrupted_by_channels_last(self.model):
                how = {"options": {"layout_optimization": False}}
            self.made[function] = torch.compile(function, dynamic=False, **how)
        return self.made[function]

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Where its passes are computed in its own precision."""
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self.compute.precision == "bf16")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.model(self.normalised(images))
        return logits

    def answer(self, images: Tensor) -> Tensor:
        """What a user of it is given for images (B, C, H, W) in [0, 1]: logits (B, K), or (B, K, H, W) of pixels."""
        logits: Tensor = self(images)
        return logits

    @property
    def device(self) -> torch.device:
        """The device that holds its weights."""
        return self.mean.device

    def parameter_count(self) -> int:
        """How many trainable numbers it has."""
        return sum(parameter.numel() for parameter in self.parameters())


def corrupted_by_channels_last(model: nn.Module) -> bool:
    """Whether training a model in channels_last on a CPU would write past oneDNN's buffers.

    It does so for 1x1 convolutions with a stride and fewer input channels than a vector holds, and ends in wrong
    gradients or a crash: https://github.com/uxlfoundation/oneDNN/issues/6035.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return any(each.kernel_size == (1, 1) and max(each.stride) > 1 and each.in_channels < 16 for each in convolutions)
