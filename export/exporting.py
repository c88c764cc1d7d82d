"""`tinyssl export`: from a run folder to a bundle."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from tinyssl import __version__
from tinyssl.console import log, progress
from tinyssl.errors import JobError, UsageError
from tinyssl.scoring import choose_k, knn_loo_score
from tinyssl.weights import load_encoder

from .build_engine import BuildError, build, load_tensorrt, trtexec
from .build_engine import facts as engine_facts
from .bundle import BUILD_ENGINE, RUNTIME, refuse_if_used, write_bundle
from .graph import Deployed, to_onnx
from .half import to_half
from .int8 import MIN_CENTRED, STYLES, Calibration, Quantized, quantize_best
from .parity import Parity, compare
from .runtime import ENGINE, ENGINE_FACTS, BundleError, EngineSession
from .samples import Reader, Samples, draw_samples, read_labeled

FLOAT, HALF, INT8, INT8_TRT = "encoder.onnx", "encoder.fp16.onnx", *STYLES
TARGETS: Mapping[str, tuple[str, ...]] = {
    "onnx": (FLOAT,),
    "onnx-fp16": (FLOAT, HALF),
    "onnx-int8": (FLOAT, INT8),
    "tensorrt": (FLOAT, HALF, INT8_TRT),
    "jetson": (FLOAT, HALF, INT8_TRT),
}
MAX_KNN_LOSS = 0.01
_INSTEAD = "half as large as float32 and keeps them (--target onnx-fp16)"
_ON_DEVICE = "--target jetson writes what a device builds its engine from"
_GOLDEN = 8
_BATCH = 16
_ENGINE_BATCH = 8


@dataclass(frozen=True)
class Tolerance:
    """What an exported model may differ from torch: checked here and on the device."""

    max_abs: float
    cosine: float

    def allows(self, parity: Parity) -> bool:
        """Whether the worst picture is within both."""
        return parity.max_abs <= self.max_abs and parity.worst_cosine >= self.cosine


TOLERANCES: Mapping[str, Tolerance] = {
    FLOAT: Tolerance(1e-4, 0.99999),
    HALF: Tolerance(0.05, 0.999),
    ENGINE: Tolerance(0.05, 0.999),
}


@dataclass(frozen=True)
class Exported:
    """The bundle's folder, and for each model its size in bytes and its parity with torch."""

    out: Path
    sizes: Mapping[str, int]
    parity: Mapping[str, Parity]


def export(
    run: str | Path,
    target: str = "onnx",
    out: str | Path | None = None,
    *,
    pictures: str | Path | None = None,
    calibration: str | Path | None = None,
    labels: str | Path | None = None,
    raw_features: bool = False,
    any_size: bool = False,
    force: bool = False,
    workspace: int = 1024,
    overwrite: bool = False,
) -> Exported:
    """Exports a run's encoder and proves that it gives torch's features on real pictures.

    Args:
        run: a run folder.
        target: `onnx` (float32), `onnx-fp16` (and float16), `onnx-int8` (and int8 for
            onnxruntime), `jetson`: float32, float16, int8 for TensorRT, and the program that
            makes an engine of one of them on the device, or `tensorrt`: the same with the engine
            of float16, made and measured on this machine's GPU.
        out: the bundle's folder; `<run>-bundle` when None.
        pictures: what parity is measured on; the run's own training pictures when None.
        calibration: what int8 is calibrated on; others of the same pictures when None.
        labels: CSV or class folders: int8 may not lose more than a point of k-NN accuracy there.
        raw_features: leave features as the encoder gives them instead of at unit length.
        any_size: leave height and width of the input open too.
        force: write int8 even if it changes the features too much.
        workspace: MB of scratch memory for the engine's layers.
        overwrite: replace an earlier bundle in `out`.

    Raises:
        UsageError: no encoder at `run`, an unknown target, `out` in use, or no pictures.
        JobError: features differ by more than the tolerance, or no engine can be built; nothing
            is left behind.
    """
    if target not in TARGETS:
        raise UsageError(f"target: got {target!r}, allowed are {', '.join(TARGETS)}")
    names = TARGETS[target]
    folder = Path(out) if out is not None else Path(run).with_name(f"{Path(run).name}-bundle")
    refuse_if_used(folder, overwrite)
    encoder, description = load_encoder(run)
    dtype = np.dtype(description.get("dtype", "uint8"))
    reader = Reader(description, dtype)
    wants_int8 = bool(set(names) & set(STYLES))
    samples = draw_samples(reader, run, pictures, calibration, calibrate=wants_int8)
    deployed = Deployed(encoder, getattr(torch, dtype.name), unit=not raw_features)
    wanted = _torch_features(deployed, samples.measured)
    manifest = _manifest(run, description, dtype, wanted.shape[1], raw_features, any_size)
    log.info(f"exporting {encoder.name}; this takes some seconds")
    example = torch.from_numpy(samples.measured[:2])
    model = to_onnx(deployed, example, _metadata(manifest), any_size=any_size)
    models = {FLOAT: model.SerializeToString()}
    if HALF in names:
        models[HALF] = to_half(model).SerializeToString()
    facts: dict[str, dict[str, Any]] = {}
    if wants_int8:
        labeled = None if labels is None else read_labeled(reader, labels)
        chosen = _quantize(names, model, samples, wanted)
        if not force:
            chosen = _kept(chosen, models[FLOAT], labeled, strict=target == "onnx-int8")
        models |= {name: found.model for name, found in chosen.items()}
        facts = {name: _told_of(found, samples) for name, found in chosen.items()}
    parity = {n: compare(wanted, onnx_features(m, samples.measured)) for n, m in models.items()}
    if target == "tensorrt":
        models |= _engine(models[HALF], workspace)
        parity[ENGINE] = compare(wanted, _engine_features(models, samples.measured))
    limits = {name: _tolerance(name, found) for name, found in parity.items()}
    _refuse_unlike(parity, limits)
    for name, found in parity.items():
        told = {"tolerance": asdict(limits[name]), "parity": asdict(found)}
        facts[name] = facts.get(name, {}) | told
    golden = _npz(pictures=samples.measured[:_GOLDEN], features=wanted[:_GOLDEN])
    programs = [RUNTIME]
    if target in ("jetson", "tensorrt"):
        programs.append(BUILD_ENGINE)
        manifest["trtexec"] = trtexec(HALF, description["image_size"], description["channels"])
    write_bundle(folder, models, golden, manifest, facts, programs)
    return Exported(folder, {name: len(models[name]) for name in parity}, parity)


def table(exported: Exported) -> Table:
    """Sizes and parity as a table of at most 80 columns."""
    shown = Table(
        title="Against torch, on real pictures",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    shown.add_column("")
    for column in ("MB", "max diff", "mean cos", "worst cos", "centred", "same NN", "allowed"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, found in exported.parity.items():
        shown.add_row(
            name,
            f"{exported.sizes[name] / 1e6:.1f}",
            f"{found.max_abs:.1e}",
            f"{found.mean_cosine:.6f}",
            f"{found.worst_cosine:.6f}",
            f"{found.centred_cosine:.5f}",
            f"{100 * found.same_nearest:.0f} %",
            f"{TOLERANCES[name].max_abs:.0e}" if name in TOLERANCES else f"cen. {MIN_CENTRED}",
        )
    return shown


def _quantize(
    names: Sequence[str], model: onnx.ModelProto, samples: Samples, wanted: NDArray[np.float32]
) -> dict[str, Quantized]:
    """The int8 variants asked for, each as good as calibration and float layers make it."""

    def judge(content: bytes) -> float:
        return compare(wanted, onnx_features(content, samples.measured)).centred_cosine

    with progress("calibrating", len(samples.calibrated)) as advance:
        calibration = Calibration(model, samples.calibrated, advance)
    styles = {name: style for name, style in STYLES.items() if name in names}
    log.info("choosing the best int8 by its features; this takes some minutes where layers hurt")
    return {
        name: quantize_best(calibration, style, judge, MIN_CENTRED)
        for name, style in styles.items()
    }


def _kept(
    chosen: Mapping[str, Quantized],
    reference: bytes,
    labeled: tuple[NDArray[Any], NDArray[np.int64]] | None,
    *,
    strict: bool,
) -> dict[str, Quantized]:
    """The int8 models that keep the features; raises JobError for another one if `strict`."""
    kept = {}
    for name, found in chosen.items():
        faults = _faults(found, reference, labeled)
        if not faults:
            kept[name] = found
            continue
        told = f"{name} changes the features too much: {'; '.join(faults)}; {HALF} is {_INSTEAD}"
        if strict:
            raise JobError(f"{told}; --force writes int8 all the same; no bundle was written")
        log.warning(f"{told}; it was left out, --force writes it all the same")
    return kept


def _faults(
    found: Quantized,
    reference: bytes,
    labeled: tuple[NDArray[Any], NDArray[np.int64]] | None,
) -> list[str]:
    faults = []
    if found.score < MIN_CENTRED:
        faults.append(f"centred cosine {found.score:.3f} with float32, {MIN_CENTRED} is wanted")
    if labeled is not None and (loss := _knn_loss(reference, found.model, *labeled)) > MAX_KNN_LOSS:
        faults.append(f"k-NN accuracy falls by {100 * loss:.1f} points, 1 is allowed")
    if faults and found.harm:
        worst = [f"{layer} ({harm:.3f})" for layer, harm in list(found.harm.items())[:5]]
        faults.append(f"alone, these layers cost most: {', '.join(worst)}")
    return faults


def _knn_loss(
    reference: bytes, model: bytes, pictures: NDArray[Any], labels: NDArray[np.int64]
) -> float:
    """Balanced leave-one-out k-NN accuracy that int8 loses, in [-1, 1]; k chosen on float32."""
    before, after = onnx_features(reference, pictures), onnx_features(model, pictures)
    k = choose_k(before, labels)
    return knn_loo_score(before, labels, k=k) - knn_loo_score(after, labels, k=k)


def _engine(half: bytes, workspace: int) -> dict[str, bytes]:
    """The engine of a float16 model for this machine's GPU, and what the runtime needs to know."""
    log.info("building the TensorRT engine; this takes some minutes")
    try:
        trt = load_tensorrt()
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder, HALF)
            model.write_bytes(half)
            plan = build(model, batch=_ENGINE_BATCH, workspace=workspace, trt=trt)
    except BuildError as error:
        raise JobError(f"{error}; {_ON_DEVICE}") from None
    told = json.dumps(engine_facts(plan, Path(HALF), _ENGINE_BATCH, trt), indent=1)
    return {ENGINE: plan, ENGINE_FACTS: told.encode()}


def _engine_features(models: Mapping[str, bytes], pictures: NDArray[Any]) -> NDArray[np.float32]:
    try:
        session = EngineSession(models[ENGINE], json.loads(models[ENGINE_FACTS]))
        features: NDArray[np.float32] = session.run(pictures)
    except BundleError as error:
        raise JobError(f"the engine does not run here: {error}; {_ON_DEVICE}") from None
    return features


def _told_of(found: Quantized, samples: Samples) -> dict[str, Any]:
    return {
        "calibration": samples.calibration | {"percentile": found.percentile},
        "float_layers": list(found.float_layers),
    }


def _tolerance(name: str, parity: Parity) -> Tolerance:
    """Int8 is not the same on all processors, so a device may be a little further off than here."""
    if name in TOLERANCES:
        return TOLERANCES[name]
    return Tolerance(2 * parity.max_abs, parity.worst_cosine - 0.05)


@torch.inference_mode()
def _torch_features(deployed: Deployed, pictures: NDArray[Any]) -> NDArray[np.float32]:
    batches = torch.split(torch.from_numpy(pictures), _BATCH)
    features: NDArray[np.float32] = torch.cat([deployed.eval()(b) for b in batches]).numpy()
    return features


def onnx_features(model: bytes, pictures: NDArray[Any]) -> NDArray[np.float32]:
    """Features (n, width) float32 of pictures (n, s, s, c) by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    starts = range(0, len(pictures), _BATCH)
    return np.concatenate([session.run(None, {name: pictures[s : s + _BATCH]})[0] for s in starts])


def _refuse_unlike(parity: Mapping[str, Parity], limits: Mapping[str, Tolerance]) -> None:
    for name, found in parity.items():
        allowed = limits[name]
        if not allowed.allows(found):
            raise JobError(
                f"{name} differs from torch: largest difference {found.max_abs:.2g} (allowed "
                f"{allowed.max_abs:.2g}), worst cosine {found.worst_cosine:.6f} (allowed "
                f"{allowed.cosine}); no bundle was written"
            )


def _manifest(
    run: str | Path,
    description: Mapping[str, Any],
    dtype: Any,
    width: int,
    raw_features: bool,
    any_size: bool,
) -> dict[str, Any]:
    recipe = Path(run) / "recipe.yaml"
    digest = hashlib.sha256(recipe.read_bytes()).hexdigest() if recipe.is_file() else None
    tools = ("torch", "onnx", "onnxscript", "onnxruntime")
    return {
        "tinyssl": __version__,
        "encoder": {key: description[key] for key in ("name", "stem", "mean", "std")},
        "input": {
            "size": description["image_size"],
            "resize": description["resize"],
            "channels": description["channels"],
            "channel_order": "RGB",
            "layout": "NHWC",
            "dtype": dtype.name,
            "any_size": any_size,
        },
        "features": {"width": width, "normalized": not raw_features},
        "recipe_sha256": digest,
        "tools": {tool: importlib.metadata.version(tool) for tool in tools},
    }


def _metadata(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What the ONNX file says of itself, so that it can travel without the manifest."""
    flat = {"tinyssl": str(manifest["tinyssl"])}
    for section in ("encoder", "input", "features"):
        flat |= {f"{section}.{key}": str(value) for key, value in manifest[section].items()}
    return flat


def _npz(**arrays: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
