"""Weights and config.json, without the graph: for who has the architecture's code."""

from __future__ import annotations

import copy
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from kdbench.bench.deploy.formats import Answer, Format, write_config
from kdbench.bench.deploy.student import Student


class WeightsAlone(Format):
    """The model's state dict; its normalisation, arguments and classes are in config.json."""

    name = "safetensors"
    lines = (
        "import json, safetensors.torch",
        'weights = safetensors.torch.load_file("model.safetensors")',
        'config = json.load(open("config.json"))',
    )
    use = "model.load_state_dict(weights)"
    takes = "a network of the architecture, whose code is not in the folder; config.json says its arguments and input"

    def write(self, student: Student, folder: Path) -> None:
        """Writes the weights by the names that the model itself gives them."""
        state = student.network.model.state_dict()
        safetensors.torch.save_file(
            {key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors"
        )
        write_config(student, folder)

    def load(self, student: Student, folder: Path) -> Answer:
        """Weights from the file, in a network of the same architecture."""
        network = copy.deepcopy(student.network)
        state = network.model.state_dict()
        for value in state.values():
            value.zero_()
        network.model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))

        @torch.no_grad()
        def answer(images: Tensor) -> Tensor:
            return network.answer(images.float() / 255)

        return answer
