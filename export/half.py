"""Float32 graphs to float16, for TensorRT's strongly typed engines and small GPUs."""

from __future__ import annotations

import warnings

import onnx
import onnx_ir

from .graph import IN_FLOAT, within


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Converts the encoder to float16; the types of input and features are unchanged.

    Scaling of the pictures, descriptors, pooling and the length of features stay in float32:
    65,535 and sums of squares overflow float16, and shares of few pixels underflow.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    outside = [
        node.name
        for node in model.graph.node
        if not within(node, "encoder") or any(within(node, module) for module in IN_FLOAT)
    ]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on weights that become 0 in float16
        half: onnx.ModelProto = convert_float_to_float16(
            copy, keep_io_types=True, node_block_list=outside
        )
    del half.graph.value_info[:]  # some still have the type from before the conversion
    _restore_constants(half.graph, model.graph)
    _drop_round_trips(half.graph)
    half = _sorted(half)
    onnx.checker.check_model(half, full_check=True)
    return half


def _drop_round_trips(graph: onnx.GraphProto) -> None:
    """Connects layers that stayed in float32 directly.

    The converter casts every value between them to float16 and back, which defeats the purpose: a
    sum of squares above 65,504 would become infinite, and the features 0.
    """
    halved = {n.output[0]: n.input[0] for n in graph.node if _casts_to(n, onnx.TensorProto.FLOAT16)}
    back = {
        n.output[0]: halved[n.input[0]]
        for n in graph.node
        if _casts_to(n, onnx.TensorProto.FLOAT) and n.input[0] in halved
    }
    kept = [node for node in graph.node if node.output[0] not in back]
    # Outputs of the graph must keep their names, so the nodes that compute them take these over.
    renamed = {back[output.name]: output.name for output in graph.output if output.name in back}
    for node in kept:
        inputs = [back.get(name, name) for name in node.input]
        node.input[:] = [renamed.get(name, name) for name in inputs]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    used = {name for node in kept for name in node.input} | {o.name for o in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in kept if used.intersection(node.output))


def _restore_constants(graph: onnx.GraphProto, original: onnx.GraphProto) -> None:
    """Restores float32 constants of these layers: in float16 65,535 would be infinite."""
    constants = {constant.name: constant for constant in original.initializer}
    for node in list(graph.node):
        if _casts_to(node, onnx.TensorProto.FLOAT) and node.input[0] in constants:
            restored = graph.initializer.add()
            restored.CopyFrom(constants[node.input[0]])
            restored.name = node.output[0]
            graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == kind


def _sorted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Sorts nodes after their inputs; the converter appends its casts at the end of the list."""
    graph = onnx_ir.serde.deserialize_model(model)
    graph.graph.sort()
    ordered: onnx.ModelProto = onnx_ir.serde.serialize_model(graph)
    return ordered
