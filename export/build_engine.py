"""Builds a TensorRT engine from a bundle's ONNX model, on the device that will run it.

    python build_engine.py                                  (encoder.fp16.onnx, batch 1 to 8)
    python build_engine.py --model encoder.onnx --batch 32 --workspace 2048

Needs only TensorRT 10 or 11. The model itself sets the precision of each layer ("strongly typed"),
so there are no precision flags. An engine runs only on the kind of GPU and with the TensorRT
version that built it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("tensorrt", "tensorrt_rtx")
_OLDEST = 10  # of TensorRT: earlier ones have no strongly typed networks


class BuildError(Exception):
    """The engine cannot be built; the message is one line."""


def load_tensorrt() -> Any:
    """The installed TensorRT module; raises BuildError when there is none or an old one."""
    for name in PACKAGES:
        try:
            trt = importlib.import_module(name)
        except (ImportError, OSError):
            continue
        if name == "tensorrt" and int(trt.__version__.partition(".")[0]) < _OLDEST:
            raise BuildError(
                f"TensorRT {trt.__version__} is too old, {_OLDEST} or newer is needed, on a Jetson "
                "JetPack 6; here run encoder.onnx with runtime.py"
            )
        return trt
    raise BuildError(
        "no TensorRT here; on a Jetson it comes with JetPack, elsewhere: pip install tensorrt"
    )


def build(
    model: Path,
    *,
    batch: int = 8,
    workspace: int = 1024,
    timing_cache: Path | None = None,
    targets: tuple[str, ...] = (),
    trt: Any = None,
) -> bytes:
    """Builds a serialised engine for batches of 1 to `batch` pictures.

    Args:
        model: an ONNX file whose first axis, the batch, is dynamic.
        batch: the largest batch; the engine is tuned for a batch of 1.
        workspace: scratch memory for layers, in MB.
        timing_cache: timings of earlier builds, read if the file exists and updated, so that a
            second build is faster and picks the same kernels. TensorRT-RTX has no such cache.
        targets: compute capabilities such as `SM86` to build for, which only TensorRT-RTX can do
            without the GPU; the GPU of this machine when empty.
        trt: the TensorRT module; found by `load_tensorrt` when None.

    Raises:
        BuildError: the model cannot be parsed or built; contains TensorRT's reason.
    """
    trt = trt or load_tensorrt()
    try:
        builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    except (TypeError, RuntimeError):  # the bindings raise these for a null builder
        raise BuildError("TensorRT cannot start: no GPU can be used here") from None
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = [f"{e.node_operator()} {e.node_name()}: {e.desc()}".strip() for e in errors]
        raise BuildError(f"TensorRT cannot parse {model}: {'; '.join(reasons)}")
    config = _config(trt, builder, workspace)
    config.add_optimization_profile(_profile(builder, network, batch))
    _set_targets(trt, config, targets)
    cache = _timing_cache(trt, config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"TensorRT parsed {model} but could not build an engine from it")
    if cache is not None and timing_cache is not None:
        write(timing_cache, bytes(cache.serialize()))
    return bytes(plan)


def _network_flags(trt: Any) -> int:
    """Flags that TensorRT 10 needs; TensorRT 11 always works this way and lacks them."""
    known = trt.NetworkDefinitionCreationFlag
    wanted = [name for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(known, name)]
    return sum(1 << int(getattr(known, name)) for name in wanted)


def _config(trt: Any, builder: Any, workspace: int) -> Any:
    config = builder.create_builder_config()
    # On by default, it keeps 10 bits of float32: features would differ as those of float16 do.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace << 20)
    return config


def _profile(builder: Any, network: Any, batch: int) -> Any:
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        rest = tuple(tensor.shape)[1:]
        if -1 in rest:
            raise BuildError(f"{tensor.name} is {tuple(tensor.shape)}; only the batch may be open")
        profile.set_shape(tensor.name, (1, *rest), (1, *rest), (batch, *rest))
    return profile


def _set_targets(trt: Any, config: Any, targets: tuple[str, ...]) -> None:
    if not targets:
        return
    if not hasattr(config, "num_compute_capabilities"):
        raise BuildError("this TensorRT builds for the GPU of this machine only")
    for name in targets:
        if not hasattr(trt.ComputeCapability, name):
            raise BuildError(f"no compute capability {name} in this TensorRT; such as SM86")
    config.num_compute_capabilities = len(targets)
    for number, name in enumerate(targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), number)


def _timing_cache(trt: Any, config: Any, path: Path | None) -> Any:
    if path is None or trt.__name__ == "tensorrt_rtx":
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise BuildError(f"{path} is no timing cache of this TensorRT; remove it")
    return cache


def write(path: Path, data: bytes) -> None:
    """Writes a file completely or not at all; raises BuildError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        told = f"{error.strerror or error}; it needs {len(data):,} bytes"
        raise BuildError(f"cannot write {path}: {told}") from None


def facts(plan: bytes, model: Path, batch: int, trt: Any) -> dict[str, Any]:
    """What the runtime must know about an engine before loading it."""
    return {
        "model": model.name,
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "package": trt.__name__,
        "version": trt.__version__,
        "batch": batch,
        "bytes": len(plan),
        "sha256": hashlib.sha256(plan).hexdigest(),
    }


def trtexec(model: str, size: int, channels: int) -> str:
    """The command that builds the same engine with TensorRT's own program."""
    shape = f"{size}x{size}x{channels}"
    return (
        f"trtexec --onnx={model} --saveEngine=encoder.engine --stronglyTyped --noTF32 "
        f"--minShapes=pictures:1x{shape} --optShapes=pictures:1x{shape} "
        f"--maxShapes=pictures:8x{shape}"
    )


def _refuse_unwritable(path: Path) -> None:
    """Raises BuildError for an unwritable path before a build, which takes minutes."""
    if path.is_dir() or not os.access(str(path.parent), os.W_OK):
        raise BuildError(f"{path} cannot be written; name a file in a folder that can")


def _main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=here / "encoder.fp16.onnx")
    parser.add_argument("--out", type=Path, default=here / "encoder.engine")
    parser.add_argument("--batch", type=int, default=8, help="the largest batch")
    parser.add_argument("--workspace", type=int, default=1024, help="scratch memory in MB")
    parser.add_argument("--timing-cache", type=Path, help="file that makes later builds faster")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        help="compute capability, such as SM86 (TensorRT-RTX only)",
    )
    given = parser.parse_args()
    if given.batch < 1 or given.workspace < 1:
        parser.error("--batch and --workspace must be at least 1")
    if not given.model.is_file():
        raise BuildError(f"no model at {given.model}")
    for path in (given.out, given.timing_cache):
        if path is not None:
            _refuse_unwritable(path)
    trt = load_tensorrt()
    plan = build(
        given.model,
        batch=given.batch,
        workspace=given.workspace,
        timing_cache=given.timing_cache,
        targets=tuple(given.target),
        trt=trt,
    )
    told = facts(plan, given.model, given.batch, trt)
    write(given.out, plan)
    write(given.out.with_name(f"{given.out.name}.json"), json.dumps(told, indent=1).encode())
    print(f"wrote {given.out}, {len(plan) / 1e6:.1f} MB, batches of 1 to {given.batch}")


def main() -> None:
    """Entry point; if no engine can be built, prints one line and exits with status 1."""
    try:
        _main()
    except (BuildError, OSError) as error:
        print(f"build_engine: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("build_engine: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
