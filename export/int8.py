"""Static int8 variants (QDQ): calibrated on pictures, chosen by how well they keep the features.

onnxruntime and TensorRT need different files: onnxruntime unsigned activations of every layer that
it can fuse, TensorRT symmetric inputs of convolutions and products, and float biases.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    create_calibrator,
    quant_pre_process,
)
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from .graph import IN_FLOAT, within

PERCENTILES = (100.0, 99.99, 99.9)  # % of the activations that are not clipped
MIN_CENTRED = 0.95
_PRODUCTS = ["Conv", "Gemm", "MatMul"]
_PROJECTION = "encoder.projection"
_BATCH = 16
_MOST_FLOAT = 0.25  # share of the layers; beyond it float16 is smaller and faster

Judge = Callable[[bytes], float]


@dataclass(frozen=True)
class Style:
    """What one inference engine needs in a QDQ file."""

    activation: QuantType
    operators: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)


STYLES: Mapping[str, Style] = {
    "encoder.int8.onnx": Style(QuantType.QUInt8, sorted({*QLinearOpsRegistry, *QDQRegistry})),
    "encoder.int8.trt.onnx": Style(
        QuantType.QInt8,
        _PRODUCTS,
        {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            # An output is rounded once, after the activation, as the next layer's input.
            "OpTypesToExcludeOutputQuantization": _PRODUCTS,
        },
    ),
}


@dataclass(frozen=True)
class Quantized:
    """An int8 model and how it was chosen.

    Attributes:
        model: content of the ONNX file.
        score: by the judge.
        percentile: of the calibration that scored best.
        float_layers: layers left in float, the most sensitive first.
        harm: loss from a perfect score when one layer alone is quantized, the worst first; empty
            if all layers could be quantized.
    """

    model: bytes
    score: float
    percentile: float
    float_layers: Sequence[str] = ()
    harm: Mapping[str, float] = field(default_factory=dict)


class Calibration:
    """A float32 model with histograms of its activations on some pictures.

    Args:
        model: with the input `pictures`.
        pictures: (n, s, s, c), as the model takes them.
        advance: called with the number of newly finished pictures.
    """

    def __init__(
        self, model: onnx.ModelProto, pictures: NDArray[Any], advance: Callable[[int], None]
    ) -> None:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            plain, prepared = Path(folder, "plain.onnx"), Path(folder, "prepared.onnx")
            onnx.save(model, str(plain))
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            self.model = onnx.load(str(prepared))
            beside = [n.name for n in model.graph.node if any(within(n, m) for m in IN_FLOAT)]
            self.finish = beside + _finish(self.model)
            self.calibrator = create_calibrator(
                prepared,
                augmented_model_path=str(Path(folder, "augmented.onnx")),
                calibrate_method=CalibrationMethod.Percentile,
                extra_options={"symmetric": False, "num_bins": 2048},
            )
            name = model.graph.input[0].name
            # In batches, since the calibrator keeps all activations of what it is given at once.
            for start in range(0, len(pictures), _BATCH):
                batch = pictures[start : start + _BATCH]
                self.calibrator.collect_data(_One({name: batch}))
                advance(len(batch))

    @property
    def layers(self) -> list[str]:
        """Names of the convolutions and products, in the order of the graph."""
        products = [node.name for node in self.model.graph.node if node.op_type in _PRODUCTS]
        return [name for name in products if name not in self.finish]

    def quantize(
        self,
        style: Style,
        percentile: float,
        *,
        only: Sequence[str] = (),
        without: Sequence[str] = (),
    ) -> bytes:
        """The model in int8: all layers, only those in `only`, or all but those in `without`.

        Descriptors, pooling, and the standardization and components of features are computed in
        float32: they cost little, and features of several levels have no common scale. The
        projection, which is larger than a small network in int8, is stored in float16.
        """
        with _quiet():
            self.calibrator.collector.percentile = percentile
            quantizer = QDQQuantizer(
                copy.deepcopy(self.model),
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=style.activation,
                tensors_range=self.calibrator.compute_data(),
                nodes_to_quantize=list(only),
                nodes_to_exclude=[*without, *self.finish],
                op_types_to_quantize=list(style.operators),
                extra_options=dict(style.options),
            )
            quantizer.quantize_model()
        made: onnx.ModelProto = quantizer.model.model
        _halve(made.graph, _PROJECTION)
        _keep_used_domains(made)
        content: bytes = made.SerializeToString()
        return content


def quantize_best(calibration: Calibration, style: Style, judge: Judge, enough: float) -> Quantized:
    """Quantizes with the best calibration and, if that is not enough, leaves layers in float.

    Layers are left out by the harm that each does alone, twice as many each time until the score
    suffices, at most a quarter of all.

    Args:
        calibration: of the float32 model.
        style: of the engine that will run the model.
        judge: maps a model to a score, 1 for the same features as in float32.
        enough: score to reach.

    Returns:
        The first model that reaches `enough`, otherwise the best one; with the harm of each layer
        unless a calibration alone suffices.
    """

    def quantized(percentile: float, without: Sequence[str] = ()) -> Quantized:
        model = calibration.quantize(style, percentile, without=without)
        return Quantized(model, judge(model), percentile, without)

    best = max((quantized(p) for p in PERCENTILES), key=lambda q: q.score)
    if best.score >= enough:
        return best
    harm = _harm(calibration, style, best.percentile, judge)
    for without in _growing(list(harm)):
        best = max(best, quantized(best.percentile, without), key=lambda q: q.score)
        if best.score >= enough:
            break
    return replace(best, harm=harm)


def _harm(
    calibration: Calibration, style: Style, percentile: float, judge: Judge
) -> dict[str, float]:
    alone = {
        layer: 1 - judge(calibration.quantize(style, percentile, only=[layer]))
        for layer in calibration.layers
    }
    return dict(sorted(alone.items(), key=lambda item: -item[1]))


def _growing(layers: Sequence[str]) -> Iterator[list[str]]:
    count = 1
    while count <= len(layers) * _MOST_FLOAT:
        yield list(layers[:count])
        count *= 2


def _finish(model: onnx.ModelProto) -> list[str]:
    """Names of nodes that join and standardize features, all later ones, and the classifier's."""
    nodes, seen = model.graph.node, {"encoder.centre", "linear.weight"}
    found = []
    for node in nodes:  # sorted: each comes after the nodes that compute its inputs
        if seen & set(node.input):
            seen |= set(node.output)
            found.append(node)
    given = {name for node in found[:1] for name in node.input}
    joins = [n.name for n in nodes if n.op_type == "Concat" and given & set(n.output)]
    return joins + [node.name for node in found]


def _halve(graph: onnx.GraphProto, name: str) -> None:
    """Stores a constant in float16, with a cast to float32 that engines fold away."""
    for constant in graph.initializer:
        if constant.name == name:
            values = onnx.numpy_helper.to_array(constant).astype(np.float16)
            constant.CopyFrom(onnx.numpy_helper.from_array(values, f"{name}.half"))
            cast = onnx.helper.make_node(
                "Cast", [constant.name], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT
            )
            graph.node.insert(0, cast)


def _keep_used_domains(model: onnx.ModelProto) -> None:
    """Drops operator sets of no node, whose new versions older runtimes refuse."""
    used = {node.domain for node in model.graph.node}
    kept = [copy.copy(opset) for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


class _One:
    """A reader of one batch, as the calibrator wants it."""

    def __init__(self, feed: dict[str, NDArray[Any]]) -> None:
        self.feeds = iter([feed])

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        return next(self.feeds, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the quantizer's progress and its warnings on preprocessing."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
