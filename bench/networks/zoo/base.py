"""What the networks of the zoo are built on: a chain of stages with timm's interface, and timm's registry."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

default_cfgs: dict[str, Any] = {}


class Staged(nn.Module):
    """A chain of stages and a linear classifier, with the parts of timm's model interface that observation uses."""

    def __init__(
        self,
        stages: list[nn.Module],
        widths: list[int],
        num_classes: int,
        drop_rate: float,
        neck: nn.Module | None = None,
        num_features: int = 0,
        stem: bool = False,
    ) -> None:
        """Joins the stages.

        Args:
            stages: each maps (B, C, H, W) to (B, C', H', W').
            widths: channels after each stage.
            num_classes: outputs of the classifier; 0 for none.
            drop_rate: dropout before the classifier.
            neck: changes the last map before it is pooled, where the network does so.
            num_features: channels after the neck; by default those of the last stage.
            stem: whether the first of the stages is a bare stem.
        """
        super().__init__()
        self.num_classes, self.num_features = num_classes, num_features or widths[-1]
        self.stages = nn.ModuleList(stages)
        self.neck = neck or nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        names = ["stem" if stem and not i else f"stages.{i}" for i in range(len(widths))]
        self.feature_info = [{"num_chs": width, "module": name} for width, name in zip(widths, names, strict=True)]

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.fc

    def forward_intermediates(
        self, x: Tensor, indices: list[int] | None = None, stop_early: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """The last feature map, and those of the chosen stages; may stop at the last of these."""
        features = []
        last = max(indices) + 1 if indices and stop_early else len(self.stages)
        for stage in self.stages[:last]:
            x = stage(x)
            features.append(x)
        return x, features if indices is None else [features[index] for index in indices]

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map (B, C, H, W)."""
        return self.forward_intermediates(x, [])[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, K) of a feature map, or the pooled vector (B, D)."""
        pooled: Tensor = self.head_drop(F.adaptive_avg_pool2d(self.neck(x), 1).flatten(1))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.forward_head(self.forward_features(x))


def register(name: str, build: Any) -> None:
    """Registers a network; extra arguments that timm passes to every network are dropped."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        for argument in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            kwargs.pop(argument, None)
        if pretrained:
            raise RuntimeError(f"no pretrained weights are published for {name}; it is trained here.")
        network: nn.Module = build(**kwargs)
        return network

    entrypoint.__name__ = entrypoint.__qualname__ = name
    register_model(entrypoint)
