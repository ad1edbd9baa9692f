"""Weights from files: those of the store, and checkpoints that users bring."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from kdbench.bench.errors import InputError, reason
from kdbench.bench.networks.network import Network

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "student")
"""Names below which programs save a state dict, among other things; the first that is there counts."""
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.", "student.")
"""What stands before the names of weights where a network was part of another: of DataParallel, torch.compile, ..."""
REFUSED = re.compile(r"WeightsUnpickler error: (.+?)(?: Please use | Check the documentation |$)")
"""What torch says of a pickle that it does not execute, without its advice to execute it."""


def load_weights(network: Network, file: bytes, name: str) -> None:
    """Puts a stored safetensors file into a network.

    Raises:
        InputError: if the file does not fit.
    """
    try:
        network.load_state_dict(safetensors.torch.load(file))
    except (RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise InputError(f"the stored weights do not fit {name}: {reason(error)}") from None


def import_checkpoint(path: Path, network: Network, name: str) -> bytes:
    """A user's checkpoint as our safetensors file: tensors only, never executing a pickle.

    Args:
        path: a safetensors file, or what torch.save wrote: a state dict of the timm model, bare or below names of
            `WRAPPERS`, its keys bare or behind `PREFIXES`.
        network: for which it is; its weights are replaced.
        name: of the model, for errors.

    Raises:
        InputError: if the file is missing, is not a checkpoint of tensors, or does not fit the network.
    """
    state = _state_of(_read(path), path)
    if bad := [key for key, value in state.items() if value.is_complex() or not value.isfinite().all()]:
        raise InputError(f"{path} holds values that are no finite real numbers, in {bad[0]}.")
    for target in (network, network.model):  # with the normalisation, as our own files are, or of the model alone
        renamed = _renamed(state, target.state_dict().keys(), path)
        if renamed.keys() == target.state_dict().keys():
            break
    try:
        target.load_state_dict(renamed)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit {name}: {reason(error)}") from None
    return safetensors.torch.save({key: value.contiguous() for key, value in network.state_dict().items()})


def _read(path: Path) -> Any:
    """What a file holds, if that is tensors and plain values."""
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt file can raise anything
        said, remedy = reason(error), ""
        if isinstance(error, pickle.UnpicklingError) and (refused := REFUSED.search(" ".join(str(error).split()))):
            said = f"{refused[1].removesuffix('.')}."
            remedy = " Objects are never executed: keep the weights alone, torch.save(network.state_dict(), path)."
        raise InputError(f"{path} is not a readable checkpoint of tensors: {said}{remedy}") from None


def _state_of(found: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file holds."""
    entered: list[int] = []  # a file may hold a dict within itself
    while isinstance(found, dict) and id(found) not in entered:
        entered.append(id(found))
        found = next((found[name] for name in WRAPPERS if isinstance(found.get(name), dict)), found)
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no state dict of tensors, but {type(found).__name__}.")
    for key, value in found.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise InputError(
                f"{path} holds no state dict of tensors: {key!r} is {type(value).__name__}. It may be bare, or below "
                f"{', '.join(WRAPPERS)}."
            )
    if not found:
        raise InputError(f"{path} holds an empty state dict.")
    return found


def _renamed(state: dict[str, Tensor], wanted: Collection[str], path: Path) -> dict[str, Tensor]:
    """A state dict by the names that are wanted, where they are behind prefixes."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        while name not in wanted and (prefix := next(filter(name.startswith, PREFIXES), "")):
            name = name.removeprefix(prefix)
        if name in renamed:
            raise InputError(f"{path} holds {name} of several networks, as {key}: keep those of one.")
        renamed[name] = value
    return renamed
