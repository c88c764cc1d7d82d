"""`tinyssl export`: makes a bundle from a run folder."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from tinyssl import __version__
from tinyssl.classifier import CLASSIFIER, Classifier, load_classifier
from tinyssl.console import log, score_table
from tinyssl.errors import UsageError
from tinyssl.files import sha256
from tinyssl.rows import spaced_rows
from tinyssl.weights import WEIGHTS, layout, load_encoder

from .build_engine import trtexec
from .bundle import BUILD_ENGINE, RUNTIME, refuse_if_used, write_bundle
from .graph import Deployed, to_onnx
from .int8 import MIN_CENTRED, STYLES
from .mobile import MODEL as PTE
from .mobile import need_executorch
from .parity import Parity
from .runtime import ENGINE
from .samples import Reader, draw_samples, labeled_pictures
from .variants import HALF, ONE_SIZE, TARGETS, TOLERANCES, Variant, Workshop, need_tensorrt

_GOLDEN = 8
_ORDER = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of the channels, by Pillow's names


@dataclass(frozen=True)
class Exported:
    """The bundle's folder and its models by file name."""

    out: Path
    variants: Mapping[str, Variant]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each model."""
        return {name: len(variant.content) for name, variant in self.variants.items()}

    @property
    def parity(self) -> dict[str, Parity]:
        """Parity of each model's features with torch's."""
        return {name: variant.parity for name, variant in self.variants.items()}


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
    """Exports a run's encoder and checks on real pictures that it returns torch's features.

    Args:
        run: a run folder; models of a fine-tuned one also return probabilities.
        target: `onnx` (float32); `onnx-fp16` (float32, float16); `onnx-int8` (float32, int8 for
            onnxruntime); `jetson` (float32, float16, int8 for TensorRT, and the program that
            builds an engine from one of them on the device); `tensorrt` (the same, and the engine
            of the float16 model, built and measured on this machine's GPU); or `mobile` (float32,
            and an ExecuTorch program for phones, which takes one picture at a time).
        out: the bundle's folder; `<run>-bundle` when None.
        pictures: to measure parity on; when None the run's own, with those of its pretraining.
        calibration: pictures to calibrate int8 on; when None others from the same source.
        labels: CSV or class folders, on which int8 may lose at most one point of k-NN accuracy.
        raw_features: leave features as the encoder returns them, not scaled to unit length.
        any_size: make height and width of the input dynamic too; ONNX targets only.
        force: write int8 even if it changes the features too much.
        workspace: scratch memory for the engine's layers, in MB.
        overwrite: replace an earlier bundle in `out`, if the folder has nothing else.

    Raises:
        UsageError: no encoder at `run`; a target that is unknown or does not support uint16;
            `labels` or `calibration` without int8; `out` in use; or no pictures.
        JobError: features differ by more than the tolerance, or a model cannot be made; nothing
            is written.
    """
    _refuse_target(target, any_size, {"--labels": labels, "--calibration": calibration})
    folder = Path(out) if out is not None else _beside(run)
    refuse_if_used(folder, overwrite)
    encoder, description = load_encoder(run)
    dtype = np.dtype(description["dtype"])
    _refuse_depth(target, dtype)
    if ENGINE in TARGETS[target]:
        need_tensorrt()  # before int8, which takes minutes
    classifier = load_classifier(run)
    reader = Reader(description)
    samples = draw_samples(reader, run, pictures, calibration, calibrate=_has_int8(target))
    labeled = None if labels is None else labeled_pictures(reader, labels)
    deployed = Deployed(encoder, getattr(torch, dtype.name), not raw_features, classifier)
    manifest = _manifest(run, description, dtype, raw_features, any_size, classifier)
    log.info(f"exporting {encoder.name}; this takes some seconds")
    example = torch.from_numpy(samples.measured[:2])
    model = to_onnx(deployed, example, _metadata(manifest), any_size=any_size)
    workshop = Workshop(deployed, model, samples, labeled, force)
    made = workshop.make(TARGETS[target], workspace=workspace, strict=target == "onnx-int8")
    _write(folder, target, made, workshop, manifest, overwrite)
    return Exported(folder, made)


def _beside(run: str | Path) -> Path:
    """The run's absolute path with `-bundle` appended; `.` and `..` would give no name."""
    path = Path(os.path.abspath(run))
    return path.parent / f"{path.name}-bundle"


def _write(
    folder: Path,
    target: str,
    made: Mapping[str, Variant],
    workshop: Workshop,
    manifest: dict[str, Any],
    overwrite: bool,
) -> None:
    """Writes the bundle, including the programs that its target needs."""
    programs = [RUNTIME]
    if target in ("jetson", "tensorrt"):
        programs.append(BUILD_ENGINE)
        taken = manifest["input"]
        manifest["trtexec"] = trtexec(HALF, taken["size"], taken["channels"])
    contents = {name: variant.content for name, variant in made.items()}
    for variant in made.values():
        contents |= variant.beside
    measured = workshop.samples.measured
    rows = spaced_rows(len(measured), _GOLDEN)  # the first ones may all be of one class
    golden = {name: outputs[rows] for name, outputs in workshop.wanted.items()}
    packed = _npz(pictures=measured[rows], **golden)
    facts = {name: variant.manifest() for name, variant in made.items()}
    write_bundle(folder, contents, packed, manifest, facts, programs, overwrite)


def table(exported: Exported) -> Table:
    """Sizes and parity as a table of at most 80 columns."""
    columns = ("MB", "max diff", "mean cos", "worst cos", "centred", "same NN", "allowed")
    shown = score_table("Against torch, on real pictures", columns)
    for name, variant in exported.variants.items():
        found = variant.parity
        limit = f"{variant.tolerance.max_abs:.0e}" if name in TOLERANCES else f"cen. {MIN_CENTRED}"
        shown.add_row(
            name,
            f"{len(variant.content) / 1e6:.1f}",
            f"{found.max_abs:.1e}",
            f"{found.mean_cosine:.6f}",
            f"{found.worst_cosine:.6f}",
            f"{found.centred_cosine:.5f}",
            f"{100 * found.same_nearest:.0f} %",
            limit,
        )
    told = [
        f"{name} {100 * v.same_class:.0f} %"
        for name, v in exported.variants.items()
        if v.same_class is not None
    ]
    if told:
        shown.caption = f"Same class as torch: {', '.join(told)}."
    return shown


def _refuse_target(target: str, any_size: bool, of_int8: Mapping[str, Any]) -> None:
    if target not in TARGETS:
        raise UsageError(f"target: got {target!r}, allowed are {', '.join(TARGETS)}")
    if PTE in TARGETS[target]:
        need_executorch()
    if any_size and target in ONE_SIZE:
        raise UsageError(f"target {target} has one picture size; leave --any-size out")
    named = [option for option, value in of_int8.items() if value is not None]
    if named and not _has_int8(target):
        raise UsageError(
            f"{' and '.join(named)}: for int8 only, and target {target} has none; leave it out, or "
            "give --target onnx-int8 or jetson"
        )


def _has_int8(target: str) -> bool:
    return not set(TARGETS[target]).isdisjoint(STYLES)


def _refuse_depth(target: str, dtype: Any) -> None:
    """Raises UsageError for uint16, which neither TensorRT nor ExecuTorch supports."""
    if target in ONE_SIZE and dtype != np.uint8:
        raise UsageError(
            f"target {target} takes uint8 pictures, this encoder {dtype}; give --target onnx, "
            "onnx-fp16 or onnx-int8"
        )


def _manifest(
    run: str | Path,
    description: Mapping[str, Any],
    dtype: Any,
    raw_features: bool,
    any_size: bool,
    classifier: Classifier | None,
) -> dict[str, Any]:
    recipe = Path(run) / "recipe.yaml"
    tools = ("torch", "onnx", "onnxscript", "onnxruntime", "pillow", "executorch")
    return {
        "tinyssl": __version__,
        "encoder": {key: description[key] for key in ("name", "mean", "std")} | layout(description),
        "input": {
            "size": description["image_size"],
            "resize": description["resize"],
            "channels": description["channels"],
            "channel_order": _ORDER[description["channels"]],
            "layout": "NHWC",
            "dtype": dtype.name,
            "any_size": any_size,
            "max_pixels": description["max_pixels"],
        },
        "features": {"width": description["width"], "normalized": not raw_features},
        **({} if classifier is None else {"classes": classifier.classes}),
        "encoder_sha256": sha256(Path(run) / WEIGHTS),
        "classifier_sha256": None if classifier is None else sha256(Path(run) / CLASSIFIER),
        "recipe_sha256": sha256(recipe) if recipe.is_file() else None,
        "tools": {tool: version for tool in tools if (version := _version(tool))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _metadata(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of the ONNX file, so that it can be used without the manifest."""
    flat = {"tinyssl": str(manifest["tinyssl"])}
    for section in ("encoder", "input", "features"):
        flat |= {f"{section}.{key}": str(value) for key, value in manifest[section].items()}
    if "classes" in manifest:
        flat["classes"] = json.dumps(manifest["classes"])
    return flat


def _npz(**arrays: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
