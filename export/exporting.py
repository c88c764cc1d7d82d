"""`tinyssl export`: from a run folder to a bundle."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from tinyssl import __version__
from tinyssl.config import sources_of
from tinyssl.console import log
from tinyssl.data import load_pictures, scan
from tinyssl.errors import JobError, UsageError
from tinyssl.picture import to_depth
from tinyssl.weights import load_encoder

from .build_engine import trtexec
from .bundle import BUILD_ENGINE, RUNTIME, refuse_if_used, write_bundle
from .graph import Deployed, to_onnx
from .half import to_half
from .parity import Parity, compare

TARGETS = ("onnx", "onnx-fp16", "jetson")
_SAMPLE, _GOLDEN = 64, 8
_BATCH = 16


@dataclass(frozen=True)
class Tolerance:
    """What an exported model may differ from torch: checked here and on the device."""

    max_abs: float
    cosine: float

    def allows(self, parity: Parity) -> bool:
        """Whether the worst picture is within both."""
        return parity.max_abs <= self.max_abs and parity.worst_cosine >= self.cosine


TOLERANCES: Mapping[str, Tolerance] = {
    "encoder.onnx": Tolerance(1e-4, 0.99999),
    "encoder.fp16.onnx": Tolerance(0.05, 0.999),
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
    raw_features: bool = False,
    any_size: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Exports a run's encoder and proves that it gives torch's features on real pictures.

    Args:
        run: a run folder.
        target: `onnx` (float32), `onnx-fp16` (float32 and float16), or `jetson`: both, and the
            program that makes a TensorRT engine of them on the device.
        out: the bundle's folder; `<run>-bundle` when None.
        pictures: what parity is measured on; the run's own training pictures when None.
        raw_features: leave features as the encoder gives them instead of at unit length.
        any_size: leave height and width of the input open too.
        overwrite: replace an earlier bundle in `out`.

    Raises:
        UsageError: no encoder at `run`, an unknown target, `out` in use, or no pictures.
        JobError: features differ by more than the tolerance; nothing is left behind.
    """
    if target not in TARGETS:
        raise UsageError(f"target: got {target!r}, allowed are {', '.join(TARGETS)}")
    folder = Path(out) if out is not None else Path(run).with_name(f"{Path(run).name}-bundle")
    refuse_if_used(folder, overwrite)
    encoder, description = load_encoder(run)
    dtype = np.dtype(description.get("dtype", "uint8"))
    sample = _sample(run, description, pictures, dtype)
    deployed = Deployed(encoder, getattr(torch, dtype.name), unit=not raw_features)
    wanted = _torch_features(deployed, sample)
    manifest = _manifest(run, description, dtype, wanted.shape[1], raw_features, any_size)
    log.info(f"exporting {encoder.name}; this takes some seconds")
    model = to_onnx(deployed, torch.from_numpy(sample[:2]), _metadata(manifest), any_size=any_size)
    models = {"encoder.onnx": model.SerializeToString()}
    if target != "onnx":
        models["encoder.fp16.onnx"] = to_half(model).SerializeToString()
    parity = {name: compare(wanted, _onnx_features(m, sample)) for name, m in models.items()}
    _refuse_unlike(parity)
    facts = {
        name: {"tolerance": asdict(TOLERANCES[name]), "parity": asdict(found)}
        for name, found in parity.items()
    }
    golden = _npz(pictures=sample[:_GOLDEN], features=wanted[:_GOLDEN])
    programs = [RUNTIME]
    if target == "jetson":
        programs.append(BUILD_ENGINE)
        manifest["trtexec"] = trtexec(
            "encoder.fp16.onnx", description["image_size"], description["channels"]
        )
    write_bundle(folder, models, golden, manifest, facts, programs)
    return Exported(folder, {name: len(m) for name, m in models.items()}, parity)


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
            f"{TOLERANCES[name].max_abs:.0e}",
        )
    return shown


def _sample(
    run: str | Path, description: Mapping[str, Any], pictures: str | Path | None, dtype: Any
) -> NDArray[Any]:
    """At most 64 evenly spaced pictures, as the encoder takes them."""
    try:
        sources = sources_of(run) if pictures is None else [pictures]
        paths = scan(sources)
    except UsageError as error:
        raise UsageError(f"parity needs real pictures: {error}; give --pictures DIR") from None
    rows = np.unique(np.linspace(0, len(paths) - 1, min(_SAMPLE, len(paths))).astype(int))
    found = load_pictures(
        [paths[row] for row in rows],
        size=description["image_size"],
        rule=description["resize"],
        channels=description["channels"],
    )
    if len(found.paths) < 2:
        raise UsageError(f"parity needs at least 2 readable pictures, got {len(found.paths)}")
    return to_depth(np.array(found.array), dtype)


@torch.inference_mode()
def _torch_features(deployed: Deployed, pictures: NDArray[Any]) -> NDArray[np.float32]:
    batches = torch.split(torch.from_numpy(pictures), _BATCH)
    features: NDArray[np.float32] = torch.cat([deployed.eval()(b) for b in batches]).numpy()
    return features


def _onnx_features(model: bytes, pictures: NDArray[Any]) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    starts = range(0, len(pictures), _BATCH)
    return np.concatenate([session.run(None, {name: pictures[s : s + _BATCH]})[0] for s in starts])


def _refuse_unlike(parity: Mapping[str, Parity]) -> None:
    for name, found in parity.items():
        allowed = TOLERANCES[name]
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
