"""An encoder as one ONNX graph that takes pictures as a decoder returns them.

b = batch, s = picture size, c = channels.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from tinyssl.classifier import Classifier
from tinyssl.encoder import Encoder

INPUT, FEATURES, PROBABILITIES = "pictures", "features", "probabilities"
IN_FLOAT = ("encoder.descriptors", "encoder.pool")  # modules that stay in float32 in every variant
# The first that torch's exporter writes, from which it converts to others, and the IR of its time:
# onnxruntime reads them from 1.14 on, those of the newest torch not before 1.18.
_OPSET, _IR = 18, 8
_SCOPES = "pkg.torch.onnx.name_scopes"
_TRACE = "pkg.torch.onnx.stack_trace"
_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}


class Deployed(nn.Module):
    """The encoder with its pre- and postprocessing, so that a device need not repeat them.

    Args:
        encoder: in evaluation mode; its normalization becomes part of the graph.
        dtype: of the pictures, uint8 or uint16.
        unit: scale features to unit length.
        classifier: applied to the encoder's unscaled features.
    """

    def __init__(
        self,
        encoder: Encoder,
        dtype: torch.dtype,
        unit: bool,
        classifier: Classifier | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.scale = _SCALE[dtype]
        self.unit = unit
        self.linear = None if classifier is None else _linear(classifier)

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs of `forward`."""
        return [FEATURES] if self.linear is None else [FEATURES, PROBABILITIES]

    def forward(self, pictures: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(b, s, s, c) integers to (b, width) features and (b, k) probabilities, float32."""
        # Cast before permuting: TensorRT does not transpose uint8.
        scaled = pictures.float().permute(0, 3, 1, 2) / self.scale
        if torch.compiler.is_exporting():
            # Otherwise pooling keeps channels last in memory by layers that few devices support.
            scaled = scaled.contiguous()
        raw: Tensor = self.encoder(scaled)
        features = raw
        if self.unit:
            features = raw / raw.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
        return features if self.linear is None else (features, self.linear(raw).softmax(dim=1))


def _linear(classifier: Classifier) -> nn.Linear:
    """A layer that computes the classifier's logits, divided by its temperature."""
    linear = nn.Linear(classifier.weight.shape[1], classifier.weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(classifier.weight / classifier.temperature)
        linear.bias.copy_(classifier.bias / classifier.temperature)
    return linear


def to_onnx(
    deployed: Deployed, example: Tensor, metadata: Mapping[str, str], *, any_size: bool = False
) -> onnx.ModelProto:
    """Exports the graph, weights included, with a dynamic batch, and checks it.

    Args:
        deployed: on the CPU.
        example: (b, s, s, c) pictures to trace with; their size becomes the graph's.
        metadata: written to the file.
        any_size: make height and width dynamic too.
    """
    open_axes: dict[int, Any] = {0: "batch"}
    if any_size:
        open_axes |= {1: "height", 2: "width"}
    with _quiet():
        program = torch.onnx.export(
            deployed.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes={"pictures": open_axes},
            input_names=[INPUT],
            output_names=deployed.outputs,
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    model.ir_version = _IR
    _forget_traces(model)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model


def _forget_traces(model: onnx.ModelProto) -> None:
    """Drops the exporter's stack traces, which name the folders of the machine that exported."""
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != _TRACE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)


def within(node: onnx.NodeProto, module: str) -> bool:
    """Whether a node of `to_onnx` comes from a module, by its name in `Deployed`, or its parts."""
    scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "")
    return f"'{module}'" in scopes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's progress and its warnings on its own code; errors are raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
