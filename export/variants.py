"""The variants of a bundle's model, by precision and runtime: making and measuring them.

n = pictures, s = picture size, c = channels.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from tinyssl.console import log, progress
from tinyssl.errors import JobError
from tinyssl.scoring import choose_k, knn_loo_score

from .build_engine import BuildError, build, load_tensorrt
from .build_engine import facts as engine_facts
from .graph import FEATURES, PROBABILITIES, Deployed
from .half import to_half
from .int8 import MIN_CENTRED, STYLES, Calibration, Judge, Quantized, quantize_best
from .mobile import MODEL as PTE
from .mobile import pte_outputs, to_pte
from .parity import Parity, compare
from .runtime import ENGINE, ENGINE_FACTS, BundleError, Cuda, EngineSession
from .samples import Samples

FLOAT, HALF, INT8, INT8_TRT = "encoder.onnx", "encoder.fp16.onnx", *STYLES
TARGETS: Mapping[str, tuple[str, ...]] = {
    "onnx": (FLOAT,),
    "onnx-fp16": (FLOAT, HALF),
    "onnx-int8": (FLOAT, INT8),
    "tensorrt": (FLOAT, HALF, INT8_TRT, ENGINE),
    "jetson": (FLOAT, HALF, INT8_TRT),
    "mobile": (FLOAT, PTE),
}
ONE_SIZE = ("tensorrt", "jetson", "mobile")  # targets built for one picture size
ENGINE_BATCH = 8
MAX_KNN_LOSS = 0.01
_MARGIN = 0.005  # above MIN_CENTRED, since it may be a little less on the measured pictures
_INSTEAD = "half as large as float32 and keeps them (--target onnx-fp16)"
_ON_DEVICE = "--target jetson writes what a device builds its engine from"
_BATCH = 16
_LEAST_PROBABILITY = 0.01  # by which a device may always differ

Outputs = Mapping[str, NDArray[np.float32]]
Labeled = tuple[NDArray[Any], NDArray[np.int64]]


@dataclass(frozen=True)
class Tolerance:
    """Limits of a model's differences from torch, checked here and on the device.

    Attributes:
        max_abs: largest absolute difference allowed.
        cosine: lowest cosine allowed of any picture.
        mean_cosine: lowest mean cosine allowed.
        probability: largest absolute difference allowed of a class's probability on the device.
    """

    max_abs: float
    cosine: float
    mean_cosine: float = -1.0
    probability: float = 1.0

    def allows(self, parity: Parity) -> bool:
        """Whether the parity of features is within their three limits."""
        return (
            parity.max_abs <= self.max_abs
            and parity.worst_cosine >= self.cosine
            and parity.mean_cosine >= self.mean_cosine
        )


TOLERANCES: Mapping[str, Tolerance] = {  # of features of length 1
    FLOAT: Tolerance(1e-4, 0.99999),
    HALF: Tolerance(0.05, 0.99, 0.999),
    ENGINE: Tolerance(0.05, 0.99, 0.999),
    PTE: Tolerance(1e-4, 0.99999),
}


@dataclass(frozen=True)
class Variant:
    """One model file and its measurements.

    Attributes:
        content: of the file.
        parity: of its features with torch's.
        tolerance: for its features, here and on the device.
        same_class: share of pictures with the same class as by torch; None without a classifier.
        facts: further entries of the manifest.
        beside: accompanying files, by name.
    """

    content: bytes = field(repr=False)  # megabytes, which notebooks would show
    parity: Parity
    tolerance: Tolerance
    same_class: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def manifest(self) -> dict[str, Any]:
        """Its entry in the manifest."""
        told = {"tolerance": asdict(self.tolerance), "parity": asdict(self.parity)}
        if self.same_class is not None:
            told["parity"]["same_class"] = self.same_class
        return dict(self.facts) | told


class Workshop:
    """Makes variants of one model and measures each on the same pictures.

    Args:
        deployed: in evaluation mode, on the CPU.
        model: its float32 graph.
        samples: pictures to measure on, and to calibrate and choose int8 on.
        labeled: (n, s, s, c) pictures and (n,) classes, whose k-NN accuracy int8 must keep.
        force: keep int8 even if it changes the features too much.
    """

    def __init__(
        self,
        deployed: Deployed,
        model: onnx.ModelProto,
        samples: Samples,
        labeled: Labeled | None,
        force: bool,
    ) -> None:
        self.deployed, self.model, self.samples = deployed, model, samples
        self.labeled, self.force = labeled, force
        self.wanted = torch_outputs(deployed, samples.measured)
        lengths = np.linalg.norm(self.wanted[FEATURES], axis=1)
        self.length = 1.0 if deployed.unit else float(lengths.mean())
        self.float = model.SerializeToString()

    def make(self, names: Sequence[str], *, workspace: int, strict: bool) -> dict[str, Variant]:
        """Makes the named variants.

        An int8 model that changes the features too much is left out, or raises if `strict`.

        Raises:
            JobError: a variant differs from torch by more than its tolerance, or cannot be made.
        """
        made = {FLOAT: self._measured(FLOAT, self.float)}
        if HALF in names:
            half = to_half(self.model).SerializeToString()
            made[HALF] = self._measured(HALF, half)
        styles = {name: style for name, style in STYLES.items() if name in names}
        if styles:
            made |= self._int8(styles, strict)
        if PTE in names:
            content = to_pte(self.deployed, torch.from_numpy(self.samples.measured))
            rows = pte_outputs(content, self.samples.measured)
            found = dict(zip(self.deployed.outputs, rows, strict=True))
            made[PTE] = self._variant(PTE, content, found)
        if ENGINE in names:
            made[ENGINE] = self._engine(made[HALF].content, workspace)
        _refuse_unlike(made)
        return made

    def _measured(self, name: str, content: bytes, **more: Any) -> Variant:
        return self._variant(name, content, onnx_outputs(content, self.samples.measured), **more)

    def _variant(self, name: str, content: bytes, found: Outputs, **more: Any) -> Variant:
        parity = compare(self.wanted[FEATURES], found[FEATURES])
        # Int8 differs between processors, so a device may differ a little more than this machine.
        allowed = Tolerance(2 * parity.max_abs, parity.worst_cosine - 0.05)
        if name in TOLERANCES:
            limits = TOLERANCES[name]
            allowed = replace(limits, max_abs=limits.max_abs * self.length)
        same = None
        if PROBABILITIES in found:
            wanted, other = (o[PROBABILITIES] for o in (self.wanted, found))
            same = float((wanted.argmax(axis=1) == other.argmax(axis=1)).mean())
            moved = float(np.abs(wanted - other).max())
            allowed = replace(allowed, probability=max(_LEAST_PROBABILITY, 2 * moved))
        return Variant(content, parity, allowed, same, **more)

    def _int8(self, styles: Mapping[str, Any], strict: bool) -> dict[str, Variant]:
        with progress("calibrating", len(self.samples.calibrated)) as advance:
            calibration = Calibration(self.model, self.samples.calibrated, advance)
        log.info("choosing the best int8 by its features; takes minutes if layers are sensitive")
        judge = self._judge()
        made = {}
        for name, style in styles.items():
            found = quantize_best(calibration, style, judge, MIN_CENTRED + _MARGIN)
            drawn = self.samples.calibration | {"percentile": found.percentile}
            facts = {"calibration": drawn, "float_layers": list(found.float_layers)}
            variant = self._measured(name, found.model, facts=facts)
            faults = [] if self.force else _faults(variant, found, self.float, self.labeled)
            if faults:
                _refuse_int8(name, faults, strict)
            else:
                made[name] = variant
        return made

    def _judge(self) -> Judge:
        """Scores int8 models by pictures that they were neither calibrated nor are measured on."""
        seen = self.samples.chosen
        wanted = torch_outputs(self.deployed, seen)[FEATURES]
        return lambda model: compare(wanted, onnx_outputs(model, seen)[FEATURES]).centred_cosine

    def _engine(self, half: bytes, workspace: int) -> Variant:
        """Builds the engine of the float16 model for this machine's GPU."""
        log.info("building the TensorRT engine; this takes some minutes")
        try:
            trt = load_tensorrt()
            with tempfile.TemporaryDirectory() as folder:
                model = Path(folder, HALF)
                model.write_bytes(half)
                plan = build(model, batch=ENGINE_BATCH, workspace=workspace, trt=trt)
                told = engine_facts(plan, model, ENGINE_BATCH, trt)
            found: Outputs = EngineSession(plan, told).run(self.samples.measured)
        except (BuildError, BundleError) as error:
            raise JobError(f"{error}; {_ON_DEVICE}") from None
        beside = {ENGINE_FACTS: json.dumps(told, indent=1).encode()}
        return self._variant(ENGINE, plan, found, beside=beside)


def need_tensorrt() -> None:
    """Raises JobError, which says what to do instead, if TensorRT or a GPU is missing."""
    try:
        load_tensorrt()
        Cuda()
    except (BuildError, BundleError) as error:
        raise JobError(f"{error}; {_ON_DEVICE}") from None


@torch.inference_mode()
def torch_outputs(deployed: Deployed, pictures: NDArray[Any]) -> Outputs:
    """Features, and with a classifier probabilities, of pictures (n, s, s, c) by torch."""
    batches = torch.split(torch.from_numpy(pictures), _BATCH)
    outputs = [deployed.eval()(batch) for batch in batches]
    rows = [o if isinstance(o, tuple) else (o,) for o in outputs]
    joined = [torch.cat(column).numpy() for column in zip(*rows, strict=True)]
    return dict(zip((FEATURES, PROBABILITIES), joined, strict=False))


def onnx_outputs(model: bytes, pictures: NDArray[Any]) -> Outputs:
    """Outputs as of `torch_outputs`, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name, names = session.get_inputs()[0].name, [o.name for o in session.get_outputs()]
    starts = range(0, len(pictures), _BATCH)
    parts = [session.run(names, {name: pictures[s : s + _BATCH]}) for s in starts]
    return {
        n: np.concatenate(rows) for n, rows in zip(names, zip(*parts, strict=True), strict=True)
    }


def _faults(
    variant: Variant, found: Quantized, reference: bytes, labeled: Labeled | None
) -> list[str]:
    faults = []
    kept = variant.parity.centred_cosine
    if kept < MIN_CENTRED:
        faults.append(f"centred cosine {kept:.3f} with float32, {MIN_CENTRED} is wanted")
    if labeled is not None and (loss := _knn_loss(reference, found.model, *labeled)) > MAX_KNN_LOSS:
        faults.append(f"k-NN accuracy falls by {100 * loss:.1f} points, 1 is allowed")
    if faults and found.harm:
        worst = [f"{layer} ({harm:.3f})" for layer, harm in list(found.harm.items())[:5]]
        faults.append(f"alone, these layers cost most: {', '.join(worst)}")
    return faults


def _refuse_int8(name: str, faults: Sequence[str], strict: bool) -> None:
    told = f"{name} changes the features too much: {'; '.join(faults)}; {HALF} is {_INSTEAD}"
    if strict:
        raise JobError(f"{told}; --force writes int8 anyway; no bundle was written")
    log.warning(f"{told}; it was left out, --force writes it anyway")


def _knn_loss(
    reference: bytes, model: bytes, pictures: NDArray[Any], labels: NDArray[np.int64]
) -> float:
    """Loss of balanced leave-one-out k-NN accuracy, in [-1, 1]; k is chosen on float32."""
    before, after = (onnx_outputs(m, pictures)[FEATURES] for m in (reference, model))
    k = choose_k(before, labels)
    return knn_loo_score(before, labels, k=k) - knn_loo_score(after, labels, k=k)


def _refuse_unlike(made: Mapping[str, Variant]) -> None:
    for name, variant in made.items():
        found, allowed = variant.parity, variant.tolerance
        if not allowed.allows(found):
            raise JobError(
                f"{name} differs from torch: largest difference {found.max_abs:.2g} (allowed "
                f"{allowed.max_abs:.2g}), worst cosine {found.worst_cosine:.6f} (allowed "
                f"{allowed.cosine}), mean {found.mean_cosine:.6f}; no bundle was written"
            )
