"""A TorchScript file: the graph and the weights, which torch alone runs, also from C++."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import Tensor

from kdbench.bench.deploy.formats import Answer, Format, refused, write_config
from kdbench.bench.deploy.student import Student


class TorchScript(Format):
    """A traced graph, from uint8 pixels to logits; the names of the classes are a file within it."""

    name = "torchscript"
    lines = (
        "import torch",
        'model = torch.jit.load("model.pt")',
        'class_names = __import__("json").load(open("config.json"))["label_names"]',
    )
    use = "logits = model(torch.from_numpy(images))"
    takes = "uint8 pixels as a numpy array, from 0 to 255; the graph scales and normalises them"

    def write(self, student: Student, folder: Path) -> None:
        """Traces the graph in evaluation mode."""
        names = {"class_names.json": json.dumps(student.class_names)}
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                traced = torch.jit.trace(student.graph(), student.example(), check_trace=False)
                torch.jit.save(traced, str(folder / "model.pt"), _extra_files=names)
        except Exception as error:  # the tracer raises what the model's code makes it
            raise refused(student, self.name, error) from None
        write_config(student, folder)

    def load(self, student: Student, folder: Path) -> Answer:
        """By torch, without the model's code."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.jit.load(str(folder / "model.pt"))

        @torch.no_grad()
        def answer(images: Tensor) -> Tensor:
            logits: Tensor = model(images)
            return logits

        return answer
