"""Weights from files: those of the store, and checkpoints that users bring."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bench.errors import InputError
from bench.networks.network import Network


def load_weights(network: Network, file: bytes, name: str) -> None:
    """Puts a stored safetensors file into a network.

    Raises:
        InputError: if the file does not fit.
    """
    try:
        network.load_state_dict(safetensors.torch.load(file))
    except (RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise InputError(f"the stored weights do not fit {name}: {' '.join(str(error).split())[:300]}") from None


def import_checkpoint(path: Path, network: Network, name: str) -> bytes:
    """A user's checkpoint as our safetensors file: tensors only, never executing a pickle.

    A state dict, bare or under "state_dict", "model" or "model_state_dict", of the timm model.

    Raises:
        InputError: if the file is missing, is not a checkpoint of tensors, or does not fit the network.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}.")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt file can raise anything
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} is not a readable checkpoint of tensors: {reason}") from None
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{path} holds no state dict of tensors.")
    if bad := [k for k, v in state.items() if v.is_complex() or not v.isfinite().all()]:
        raise InputError(f"{path} holds values that are no finite real numbers, in {bad[0]}.")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    target = network if "mean" in state and any(key.startswith("model.") for key in state) else network.model
    try:
        target.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit {name}: {' '.join(str(error).split())[:300]}") from None
    return safetensors.torch.save({key: value.contiguous() for key, value in network.state_dict().items()})
