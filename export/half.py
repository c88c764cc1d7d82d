"""A float32 graph to float16: what TensorRT's strongly typed engines and small GPUs want."""

from __future__ import annotations

import warnings

import onnx
import onnx_ir

_SCOPES = "pkg.torch.onnx.name_scopes"


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The encoder in float16; the type of the input and of the features stays as it is.

    Scaling the pictures and the features' length stay in float32: 65,535 and the sum of squares
    are beyond what float16 holds.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    outside = [node.name for node in model.graph.node if not _in_encoder(node)]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that become 0 in float16
        half: onnx.ModelProto = convert_float_to_float16(
            copy, keep_io_types=True, node_block_list=outside
        )
    del half.graph.value_info[:]  # some still say what a value was before the conversion
    half = _sorted(half)
    onnx.checker.check_model(half, full_check=True)
    return half


def _sorted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The converter appends its casts at the end of the list; nodes must follow their inputs."""
    graph = onnx_ir.serde.deserialize_model(model)
    graph.graph.sort()
    ordered: onnx.ModelProto = onnx_ir.serde.serialize_model(graph)
    return ordered


def _in_encoder(node: onnx.NodeProto) -> bool:
    scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "")
    return "'encoder'" in scopes
