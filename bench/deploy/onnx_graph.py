"""An ONNX file, which onnxruntime runs in many languages and on many devices."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.bench.deploy.formats import Answer, Format, refused, required, write_config
from kdbench.bench.deploy.student import Student

IMAGES, LOGITS = "images", "logits"
"""Names of the graph's input and output."""


class OnnxGraph(Format):
    """A graph from uint8 pixels to logits; the names of the classes are in its metadata too."""

    name = "onnx"
    lines = (
        "import onnxruntime",
        'session = onnxruntime.InferenceSession("model.onnx")',
        'class_names = session.get_modelmeta().custom_metadata_map["class_names"]',
    )
    use = 'logits = session.run(["logits"], {"images": images})[0]'
    takes = "uint8 pixels as a numpy array, from 0 to 255; the graph scales and normalises them"

    def check(self, student: Student) -> None:
        """Refuses where the libraries are not installed."""
        for module in ("onnx", "onnxscript", "onnxruntime"):
            required(module)

    def write(self, student: Student, folder: Path) -> None:
        """Exports the graph in evaluation mode, of any number of images."""
        onnx = required("onnx")
        model = graph_of(student)
        onnx.helper.set_model_props(model, {"class_names": json.dumps(student.class_names)})
        onnx.save(model, str(folder / "model.onnx"))
        write_config(student, folder)

    def load(self, student: Student, folder: Path) -> Answer:
        """By onnxruntime."""
        return answer_of(folder / "model.onnx")


def graph_of(student: Student) -> Any:
    """The ONNX model of a student.

    Raises:
        InputError: if its network has what ONNX has not.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    quiet = contextlib.ExitStack()
    with quiet, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            program = torch.onnx.export(
                student.graph(),
                (student.example(),),
                dynamo=True,
                input_names=[IMAGES],
                output_names=[LOGITS],
                dynamic_shapes={"images": {0: torch.export.Dim("N")}},
                verbose=False,
            )
        except Exception as error:  # the exporter raises what it or the model's code makes it
            raise refused(student, "onnx", error) from None
    assert program is not None
    return program.model_proto


def answer_of(path: Path) -> Answer:
    """What an ONNX file answers by onnxruntime on the CPU, with as many threads as torch has here."""
    runtime = required("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([LOGITS], {IMAGES: images.numpy()})[0])

    return answer
