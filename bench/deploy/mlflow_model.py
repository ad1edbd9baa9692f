"""An MLflow model folder with signature and input example, which `mlflow models predict` and `serve` take."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from kdbench.bench.deploy.formats import Answer, write_config
from kdbench.bench.deploy.onnx_graph import IMAGES, LOGITS, OnnxGraph, graph_of
from kdbench.bench.deploy.student import Student


class MlflowModel(OnnxGraph):
    """The ONNX graph with what MLflow must know to serve it."""

    name = "mlflow"
    lines = (
        "import mlflow.pyfunc",
        'model = mlflow.pyfunc.load_model(".")',
        'class_names = model.metadata.metadata["class_names"]',
    )
    use = 'logits = model.predict(images)["logits"]'

    def write(self, student: Student, folder: Path) -> None:
        """Writes the folder; what it needs to run are onnx, onnxruntime and numpy alone."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow.onnx
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        example = student.example(1).numpy()
        with torch.no_grad():
            logits = student.graph()(student.example(1))
        signature = ModelSignature(
            Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]), IMAGES)]),
            Schema([TensorSpec(np.dtype("float32"), (-1, *logits.shape[1:]), LOGITS)]),
        )
        mlflow.onnx.save_model(
            graph_of(student),
            str(folder),
            pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "onnx", "onnxruntime", "numpy")],
            signature=signature,
            input_example={IMAGES: example},
            metadata={"class_names": json.dumps(student.class_names)},
            save_as_external_data=False,
        )
        write_config(student, folder)

    def load(self, student: Student, folder: Path) -> Answer:
        """By MLflow, which asks onnxruntime."""
        import mlflow.pyfunc

        model = mlflow.pyfunc.load_model(str(folder))

        def answer(images: Tensor) -> Tensor:
            return torch.from_numpy(model.predict({IMAGES: images.numpy()})[LOGITS])

        return answer
