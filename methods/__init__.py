"""Distillation methods, one file each. Adding a file to this folder registers its method."""

import importlib
import pkgutil

from kdbench.methods.registry import OUTSIDE, REGISTRY

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["OUTSIDE", "REGISTRY"]
