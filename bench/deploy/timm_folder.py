"""A folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.models import model_entrypoint
from timm.models._hub import save_for_hf
from torch import Tensor

from kdbench.bench.deploy.formats import Answer, Format
from kdbench.bench.deploy.student import Student
from kdbench.bench.errors import InputError
from kdbench.bench.tasks.image import ImageClassification

OURS = {"tag": "kdbench", "license": None, "origin_url": None, "paper_ids": None, "paper_name": None}
"""In the place of what timm says of its own weights of the architecture."""


class TimmFolder(Format):
    """Weights and timm's own config.json, with the names of the classes and the transform of images."""

    name = "timm"
    lines = (
        "import timm",
        'model = timm.create_model("local-dir:.", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
    )
    use = "logits = model(transform(image).unsqueeze(0))"
    takes = "a PIL image; the transform resizes and normalises it, by what config.json says"

    def check(self, student: Student) -> None:
        """Refuses networks that timm alone cannot build."""
        if not isinstance(student.task, ImageClassification):
            raise InputError(
                f"timm classifies images, so a student of the task {student.task.name} cannot be a timm folder: export "
                "it --to onnx or torchscript."
            )
        if not str(model_entrypoint(student.name).__module__).startswith("timm."):
            raise InputError(
                f"{student.name} is no architecture of timm, so timm.create_model cannot load it without kdbench: "
                "export it --to onnx or torchscript, in which the graph travels, or safetensors."
            )

    def write(self, student: Student, folder: Path) -> None:
        """Writes model.safetensors and config.json, as timm's hub has them."""
        side = student.network.input_size or student.size
        inputs = {"input_size": (len(student.mean), side, side), "mean": student.mean, "std": student.std}
        looks = {"interpolation": student.interpolation, "crop_pct": 1.0, "crop_mode": "center"}
        save_for_hf(
            student.network.model,
            str(folder),
            model_config={"label_names": list(student.class_names), "pretrained_cfg": OURS},
            safe_serialization=True,
            data_config=inputs | looks,
        )

    def load(self, student: Student, folder: Path) -> Answer:
        """By timm, with the mean and deviation that its folder says."""
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        config = timm.data.resolve_model_data_config(model)
        mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
        channels, side, _ = config["input_size"]

        @torch.no_grad()
        def answer(images: Tensor) -> Tensor:
            pixels = images.float() / 255
            if side != student.size:
                pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True, align_corners=False)
            logits: Tensor = model((pixels.expand(-1, channels, -1, -1) - mean) / std)
            return logits

        return answer
