"""All formats of exported students, by name."""

from __future__ import annotations

from kdbench.bench.deploy.formats import Format
from kdbench.bench.deploy.mlflow_model import MlflowModel
from kdbench.bench.deploy.onnx_graph import OnnxGraph
from kdbench.bench.deploy.timm_folder import TimmFolder
from kdbench.bench.deploy.torchscript import TorchScript
from kdbench.bench.deploy.weights_alone import WeightsAlone
from kdbench.bench.errors import unknown

FORMATS: dict[str, Format] = {
    each.name: each for each in (TimmFolder(), OnnxGraph(), TorchScript(), WeightsAlone(), MlflowModel())
}


def format_of(name: str) -> Format:
    """A format by name.

    Raises:
        InputError: if there is none.
    """
    if name not in FORMATS:
        raise unknown("format of a student", name, FORMATS)
    return FORMATS[name]
