"""Files of encoders: loading weights, saving an encoder, rebuilding it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from timm.models import adapt_input_conv
from torch import Tensor

from tinyssl import __version__
from tinyssl.console import log
from tinyssl.encoder import Encoder, create_encoder, widen
from tinyssl.errors import UsageError
from tinyssl.files import atomic, read_json, write_text
from tinyssl.locks import is_held
from tinyssl.opening import MAX_PIXELS
from tinyssl.run_folder import resume_command
from tinyssl.tensor_file import read_tensors

FORMAT = 1
WEIGHTS, DESCRIPTION = "encoder.safetensors", "encoder.json"
MANIFEST = "manifest.json"  # of a bundle
_PREFIXES = ("module.", "backbone.", "encoder.", "model.")
_NESTS = ("state_dict", "model", "model_state", "model_state_dict")
_LEVELS = ("centre", "scale", "projection")  # an encoder's, not its backbone's
_HEADS = ("classifier.", "fc.", "head.", "head_drop.")
# Values of keys that a description may lack.
_DEFAULTS: Mapping[str, Any] = {
    "levels": 1, "pooling": "mean", "descriptors": False, "components": 0, "whitening": 0.0,
    "whiten_by": "all",
    "init": "random", "dtype": "uint8", "max_pixels": MAX_PIXELS, "finished": True,
}  # fmt: skip


def weights_file(path: str | Path) -> Path:
    """The file of weights that a run folder holds, or the file itself.

    Raises:
        UsageError: it is not there.
    """
    file = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
    if not file.is_file():
        _refuse_bundle(path)
        raise UsageError(f"no weights at {file}; give a file or a run folder")
    return file


def load_weights(encoder: Encoder, path: str | Path) -> str:
    """Loads weights of the backbone from a file or an earlier run; all must fit.

    Args:
        encoder: changed in place; from an earlier run it also gets the normalization.
        path: safetensors, a torch state dict with timm's names (optionally under a prefix such
            as `module.`, or nested under `state_dict`), or a run folder. A classifier in the
            file is ignored; a first convolution for other channels is adapted as in timm, and the
            earlier run's normalization is averaged over channels.

    Returns:
        One line that says what was loaded.

    Raises:
        UsageError: the file is missing or damaged, contains more than tensors or numbers that are
            not finite, is of another network or stem, or does not fit, in which case the first
            keys that differ are named.
    """
    source = weights_file(path)
    if source.name == WEIGHTS:
        _refuse_other_network(source.with_name(DESCRIPTION), encoder, path)
    state = _unwrap(_read(source))
    mean, std = state.pop("mean", None), state.pop("std", None)
    state = {key: value for key, value in state.items() if key not in _LEVELS}
    wanted = encoder.backbone.state_dict()
    kept = {k: v for k, v in state.items() if k in wanted or not k.startswith(_HEADS)}
    # torch does not need these, and converted files may lack them.
    _refuse_not_finite(kept | {"mean": mean, "std": std}, source)
    kept = {k: v for k, v in wanted.items() if k.endswith(".num_batches_tracked")} | kept
    _adapt_first_conv(kept, wanted)
    _refuse_misfit(kept, wanted, f"{path} does not fit {encoder.name}")
    encoder.backbone.load_state_dict(kept)
    told = f"{len(kept)} tensors for {encoder.name} from {path}"
    if mean is None or std is None:
        return told
    if mean.shape == encoder.mean.shape:
        encoder.mean.copy_(mean)
        encoder.std.copy_(std)
    elif mean.shape == std.shape == (3,):  # the only case that can be adapted
        encoder.mean.fill_(float(mean.mean()))
        encoder.std.fill_(float(std.mean()))
        told += ", of 3 channels: mean and std of the input are the means of theirs"
    return told


def _refuse_other_network(description: Path, encoder: Encoder, path: str | Path) -> None:
    """Refuses other networks, whose shapes may match but not paddings, activations, strides."""
    try:
        found = read_json(description)
    except (OSError, ValueError):
        return
    if not isinstance(found, dict) or not {"format", "name", "stem"} <= found.keys():
        return  # other programs have an `encoder.json` too
    for key, wanted in (("name", encoder.name), ("stem", encoder.stem)):
        # The part after a point names the data of timm's weights.
        if str(found[key]).partition(".")[0] != wanted.partition(".")[0]:
            raise UsageError(
                f"{path} has encoder.{key}={found[key]}, but encoder.{key}={wanted} is to "
                "start from it; give the same"
            )


def _refuse_not_finite(state: Mapping[str, Tensor | None], source: Path) -> None:
    for key, tensor in state.items():
        if tensor is not None and not bool(torch.isfinite(tensor.float()).all()):
            raise UsageError(
                f"{source}: {key} holds numbers that are not finite; take other weights"
            )


def rename_in_order(
    state: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Renames tensors by a reference that has the same tensors in the same order.

    For weights of the same architecture from another code base.

    Args:
        state: tensors under other names.
        reference: a state dict with the names wanted, such as timm's.

    Raises:
        UsageError: the number of tensors or the shapes of a pair differ.
    """
    if len(state) != len(reference):
        raise UsageError(f"{len(state)} tensors given, {len(reference)} wanted: not the same model")
    for (old, tensor), (new, like) in zip(state.items(), reference.items(), strict=True):
        if tensor.shape != like.shape:
            raise UsageError(
                f"{old} is {tuple(tensor.shape)}, but {new} at the same place is "
                f"{tuple(like.shape)}: not the same model in the same order"
            )
    return {new: t.contiguous() for new, t in zip(reference, state.values(), strict=True)}


def save_encoder(
    encoder: Encoder,
    folder: Path,
    *,
    image_size: int,
    resize: str,
    extra: Mapping[str, object] | None = None,
) -> None:
    """Writes `encoder.safetensors` and `encoder.json`, which suffice to rebuild the encoder.

    Args:
        encoder: on any device.
        folder: must exist.
        image_size: pixels a side at inference.
        resize: rule that makes pictures square.
        extra: further keys for the JSON.

    Raises:
        JobError: a file cannot be written.
    """
    tensors = {key: value.cpu().contiguous() for key, value in encoder.state_dict().items()}
    data = save(tensors)
    with atomic(folder / WEIGHTS, len(data)) as file:
        file.write(data)
    description: dict[str, object] = {
        "format": FORMAT,
        "tinyssl": __version__,
        "name": encoder.name,
        "channels": encoder.channels,
        "stem": encoder.stem,
        "levels": encoder.levels,
        "pooling": encoder.pooling,
        "descriptors": encoder.descriptors is not None,
        "components": encoder.components,
        "width": encoder.width,
        "image_size": image_size,
        "resize": resize,
        "mean": encoder.mean.tolist(),
        "std": encoder.std.tolist(),
    }
    write_text(folder / DESCRIPTION, json.dumps(description | dict(extra or {}), indent=2) + "\n")


def load_encoder(folder: str | Path) -> tuple[Encoder, dict[str, Any]]:
    """Rebuilds a saved encoder from its two files; runs no code from them.

    Returns:
        The encoder on the CPU in evaluation mode, and the JSON's content.

    Raises:
        UsageError: no encoder there, damaged, or of another format.
    """
    description = read_description(folder)
    channels, shape = description["channels"], layout(description)
    encoder = create_encoder(description["name"], channels=channels, **shape)
    state = _read(weights_file(folder))
    _refuse_misfit(state, encoder.state_dict(), f"{folder} does not fit {encoder.name}")
    encoder.load_state_dict(state)
    if not description["finished"]:
        held = is_held(Path(folder))
        what = "is still being trained" if held else "was stopped before its end"
        how = "wait for it" if held else f"go on with: {resume_command(Path(folder))}"
        log.warning(f"{folder} {what}: its features are those of the last level only; {how}")
    return encoder.eval(), description


def layout(description: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `create_encoder` besides name and channels, for the encoder described.

    `description` is of an encoder or of a bundle, whose older manifests lack some keys.
    """
    keys = ("stem", "levels", "components", "pooling", "descriptors")
    return {key: {**_DEFAULTS, **description}[key] for key in keys}


def random_like(
    description: Mapping[str, Any], seed: int, residuals: Literal["timm", "zero"] = "timm"
) -> Encoder:
    """The one-level encoder of a description with its normalization, but random weights.

    `residuals` is as in `create_encoder`: `zero` for weights that will be trained.
    """
    return create_encoder(
        description["name"],
        channels=description["channels"],
        stem=description["stem"],
        mean=description["mean"],
        std=description["std"],
        seed=seed,
        residuals=residuals,
    )


def widen_like(encoder: Encoder, description: Mapping[str, Any], pictures: NDArray[Any]) -> Encoder:
    """`widen` with the settings of an encoder's description, or of a recipe's section for it.

    With less than half as many pictures as components all features are kept, which are better then.
    """
    wanted = description["components"]
    return widen(
        encoder,
        description["levels"],
        pictures,
        wanted if 2 * len(pictures) >= wanted else 0,
        description["whitening"],
        description["pooling"],
        description["descriptors"],
        description["whiten_by"],
    )


def read_description(folder: str | Path) -> dict[str, Any]:
    """The content of `encoder.json`, with defaults for keys that it may lack.

    Raises:
        UsageError: there is none that can be read, or it is damaged or of another format.
    """
    path = Path(folder) / DESCRIPTION
    try:
        description = read_json(path)
    except OSError:
        _refuse_bundle(folder)
        wrong = "no encoder in" if Path(folder).exists() else "no folder"
        raise UsageError(
            f"{wrong} {folder}; name a run folder, one that holds {DESCRIPTION}"
        ) from None
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise UsageError(f"{path} has format {found}, this tinyssl reads {FORMAT}")
    _refuse_nonsense(description, path)
    return {**_DEFAULTS, **description}


def _refuse_bundle(folder: str | Path) -> None:
    """Raises UsageError for a folder that is a bundle, which torch cannot open."""
    if (Path(folder) / MANIFEST).is_file():
        raise UsageError(
            f"{folder} is an exported bundle; name the run folder that it was made from. The "
            f"bundle is for tinyssl embed, or python {Path(folder) / 'runtime.py'} PICTURES, which "
            "also tells the classes of a fine-tuned run"
        )


def _refuse_nonsense(description: Mapping[str, Any], path: Path) -> None:
    """Checks types and ranges, since the file is untrusted."""
    allowed: dict[str, Callable[[Any], bool]] = {
        "name": lambda value: isinstance(value, str),
        "channels": lambda value: _whole(value, 1, 4),
        "stem": lambda value: value in ("standard", "small"),
        "levels": lambda value: _whole(value, 1, 64),
        "pooling": lambda value: value in ("mean", "statistics"),
        "descriptors": lambda value: isinstance(value, bool),
        "components": lambda value: _whole(value, 0, 1 << 16),
        "whitening": lambda value: type(value) in (int, float) and 0 <= value <= 0.5,
        "whiten_by": lambda value: value in ("all", "near"),
        "image_size": lambda value: _whole(value, 1, 8192),
        "mean": lambda value: _numbers(value, description.get("channels"), -math.inf),
        "std": lambda value: _numbers(value, description.get("channels"), 0),
        "seed": lambda value: _whole(value, 0, 2**31 - 1),
        "init": lambda value: isinstance(value, str),
        "weights": lambda value: value is None or isinstance(value, str),
        "resize": lambda value: value in ("crop", "pad", "squash"),
        "width": lambda value: _whole(value, 1, 1 << 20),
        "dtype": lambda value: value in ("uint8", "uint16"),
        "max_pixels": lambda value: _whole(value, 1, 1 << 50),
        "finished": lambda value: isinstance(value, bool),
        "classes": lambda value: isinstance(value, list) and all(isinstance(n, str) for n in value),
    }
    for key in ("name", "channels", "stem", "width", "image_size", "resize", "mean", "std"):
        if key not in description:
            raise UsageError(f"{path} lacks the key {key!r}; copy the run's folder again")
    for key, good in allowed.items():
        if key in description and not good(description[key]):
            raise UsageError(f"{path}: {key} is {str(description[key])[:60]!r}, which cannot be")


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _numbers(value: Any, count: Any, above: float) -> bool:
    known = isinstance(value, list) and all(type(item) in (int, float) for item in value)
    return known and len(value) == count and all(above < item < math.inf for item in value)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU; raises UsageError where it is damaged."""
    try:
        return dict(load_file(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a safetensors file: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    loaded = read_tensors(path)
    if not isinstance(loaded, dict):
        raise UsageError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    return dict(loaded)


def _unwrap(state: dict[str, Any]) -> dict[str, Tensor]:
    for nest in _NESTS:
        if isinstance(state.get(nest), Mapping):
            state = dict(state[nest])
    state = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    while True:
        prefix = next((p for p in _PREFIXES if _mostly(state, p)), None)
        if prefix is None:
            return state
        state = {key.removeprefix(prefix): value for key, value in state.items()}


def _mostly(state: Mapping[str, Tensor], prefix: str) -> bool:
    return sum(key.startswith(prefix) for key in state) > len(state) / 2


def _adapt_first_conv(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for key in ("conv_stem.weight", "conv1.weight"):
        if key not in state or key not in wanted or state[key].ndim != 4:
            continue
        if state[key].shape[1] == 3 != wanted[key].shape[1]:
            state[key] = adapt_input_conv(wanted[key].shape[1], state[key])


def _refuse_misfit(state: Mapping[str, Any], wanted: Mapping[str, Tensor], beginning: str) -> None:
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    differ = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    parts = []
    if missing:
        parts.append(f"{len(missing)} keys missing (first: {_some(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected (first: {_some(unexpected)})")
    if differ:
        key = differ[0]
        shapes = f"{tuple(state[key].shape)} in the file, {tuple(wanted[key].shape)} in the model"
        parts.append(f"{len(differ)} shapes differ (first: {key} is {shapes})")
    if parts:
        raise UsageError(f"{beginning}: {', '.join(parts)}")


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3])
