"""`tinyssl embed --engine ray`: features by many machines, into a folder of Parquet files.

Ray Data hands chunks of pictures to workers. Each has the bundle's ONNX model, no torch, and
writes a chunk's Parquet file itself, whole or not at all. A chunk whose worker dies is given to
another one, and a stopped job goes on with the chunks that have no file yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl import remote_files
from tinyssl.console import log, progress
from tinyssl.data import fingerprint
from tinyssl.errors import JobError, TinysslError, UsageError
from tinyssl.feature_file import Features, parquet_bytes, parquet_facts
from tinyssl.files import csv_text, is_utf8
from tinyssl.neighbours import unit_rows
from tinyssl.opening import IMAGE_EXTENSIONS, reading
from tinyssl.picture import decode, resize, to_channels, to_depth
from tinyssl.scanning import scan

CHUNK = 512  # pictures of one file, and what a worker's death costs at most
_FORMAT, _MANIFEST, _MODEL, _JOB = 1, "manifest.json", "encoder.onnx", "_job.txt"
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b[^:]*: .")
_SKIPPED = "_skipped.csv"  # readers of Parquet folders pass over names that begin so
_PART = re.compile(r"part-\d{6,}\.parquet")


@dataclass(frozen=True)
class EmbeddedFolder:
    """What was written: the folder, how many pictures are in it, how many were skipped."""

    out: str
    pictures: int
    skipped: int


def embed_with_ray(
    bundle: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    dtype: str = "float32",
    batch_size: int = 64,
    workers: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
) -> EmbeddedFolder:
    """Writes features of pictures as `part-*.parquet`, the same as `embed` writes from a bundle.

    The folder also gets `_skipped.csv` where pictures could not be read. The Ray cluster that
    RAY_ADDRESS names is used; else this machine is one. On several machines, names that are no
    addresses must mean the same files everywhere.

    Args:
        bundle: a folder made by `tinyssl export`.
        data: folders, pictures, lists, or addresses such as s3://bucket/folder.
        out: a folder or an address; an earlier job's files of the same encoder and pictures are
            kept, and it goes on.
        dtype: float32 or float16.
        batch_size: pictures at a time.
        workers: processes; 0 is one a CPU of the cluster.
        device: cpu, or cuda for one GPU a worker.
        overwrite: replace another job's files in `out`.

    Raises:
        UsageError: no bundle, no pictures, `out` is in use, or ray is not installed.
        JobError: no picture can be read, or a file cannot be written or found again.
    """
    _refuse(Path(bundle), dtype, batch_size, device)
    model = {name: (Path(bundle) / name).read_bytes() for name in (_MANIFEST, _MODEL)}
    found = _find([data] if isinstance(data, str | Path) else data)
    # Workers of a cluster that was there before may be in another folder.
    folder = str(out) if remote_files.is_remote(str(out)) else os.path.abspath(out)
    key = _key(found, model, dtype)
    there = _start(folder, key, overwrite)
    urls = [file.url for file in found]
    chunks = {
        f"part-{number:06}.parquet": urls[start : start + CHUNK]
        for number, start in enumerate(range(0, len(urls), CHUNK))
    }
    left = {name: chunk for name, chunk in chunks.items() if name not in there}
    if left:
        worker = {"model": model, "out": folder, "dtype": dtype}
        _run(left, worker | {"batch_size": batch_size, "device": device}, workers)
    return _end(folder, list(chunks), urls)


class Worker:
    """A process of the cluster: addresses of pictures in, a Parquet file out.

    Args:
        model: the bundle's manifest and model, by name.
        out: the folder.
        dtype: of the features.
        batch_size: pictures at a time.
        device: as the bundle's runtime takes it.
    """

    def __init__(
        self,
        model: Mapping[str, bytes],
        out: str,
        dtype: str,
        batch_size: int,
        device: str,
    ) -> None:
        from tinyssl.export import runtime

        with tempfile.TemporaryDirectory() as folder:
            for name, data in model.items():
                (Path(folder) / name).write_bytes(data)
            # One thread: there are as many workers as CPUs.
            self.extractor = runtime.Extractor(folder, _MODEL, device, threads=1)
        self.out, self.dtype, self.batch_size = out, dtype, batch_size

    def __call__(self, chunk: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        """Ray Data's batch of one chunk to what became of it."""
        name, urls = str(chunk["name"][0]), [str(url) for url in chunk["urls"][0]]
        rows: list[tuple[str, str, NDArray[Any]]] = []
        skipped: list[tuple[str, str]] = []
        for start in range(0, len(urls), self.batch_size):
            batch = urls[start : start + self.batch_size]
            read = [(url, self._read(url)) for url in batch]
            good = [(url, *r) for url, r in read if not isinstance(r, str)]
            skipped += [(url, r) for url, r in read if isinstance(r, str)]
            if good:
                features = unit_rows(self.extractor.run(np.stack([p for _, _, p in good])))
                rows += [(u, d, f) for (u, d, _), f in zip(good, features, strict=True)]
        self._write(name, rows, skipped)
        return {"name": [name], "pictures": [len(urls)]}

    def _read(self, url: str) -> tuple[str, NDArray[Any]] | str:
        """The digest and the picture as `tinyssl.data.read_picture` has it, or why not."""
        taken = self.extractor
        try:
            data = remote_files.read(url)
        except OSError as error:
            return error.strerror or str(error)
        try:
            with reading(taken.max_pixels):
                picture = to_channels(decode(data, taken.channels), taken.channels)
                square = resize(to_depth(picture, taken.dtype), taken.size, taken.rule)
        except OSError as error:
            return error.strerror or str(error)
        except TinysslError as error:
            return str(error)
        return hashlib.blake2b(data, digest_size=16).hexdigest(), square

    def _write(
        self,
        name: str,
        rows: Sequence[tuple[str, str, NDArray[Any]]],
        skipped: Sequence[tuple[str, str]],
    ) -> None:
        features = np.stack([f for _, _, f in rows]) if rows else np.empty((0, 0), np.float32)
        block = Features([u for u, _, _ in rows], [d for _, d, _ in rows], features)
        told = json.dumps({"skipped": skipped})
        data = parquet_bytes(block, self.extractor.width, self.dtype, told)
        remote_files.write(remote_files.join(self.out, name), data)


def _refuse(bundle: Path, dtype: str, batch_size: int, device: str) -> None:
    for package, extra in (("ray", "ray"), ("pyarrow", "ray"), ("onnxruntime", "export")):
        if find_spec(package) is None:
            raise UsageError(
                f"--engine ray needs {package}; install with: pip install 'tinyssl[{extra}]'"
            )
    if not (bundle / _MANIFEST).is_file():
        raise UsageError(
            f"--engine ray takes a bundle, and {bundle} is none; make one with: "
            f"tinyssl export {bundle} --out bundle"
        )
    from tinyssl.export import runtime

    try:
        runtime.Extractor(bundle, _MODEL, "cpu")  # or each worker would tell it in a long trace
    except runtime.BundleError as error:
        raise UsageError(str(error)) from None
    if dtype not in ("float32", "float16"):
        raise UsageError(f"dtype: got {dtype!r}, allowed are float32, float16")
    if batch_size < 1:
        raise UsageError(f"batch_size: got {batch_size}; give 1 or more")
    if device not in ("cpu", "cuda"):
        raise UsageError(f"device: got {device!r}; with --engine ray allowed are cpu and cuda")


def _find(sources: Sequence[str | Path]) -> list[remote_files.Found]:
    """Pictures of all sources, sorted by name, none twice; of a storage also when they changed."""
    near = [source for source in sources if not remote_files.is_remote(str(source))]
    found = {str(path): "" for path in scan(near)} if near else {}
    for source in map(str, sources):
        if remote_files.is_remote(source):
            below = dict(remote_files.find_below(source, IMAGE_EXTENSIONS))
            if not below:
                raise UsageError(f"no pictures in {source}")
            found |= below
    odd = [url for url in found if not is_utf8(url)]
    if odd:
        raise UsageError(
            f"parquet holds names in UTF-8 only, {odd[0]!r} is not; rename it, or leave out "
            "--engine ray and write .npz or .csv"
        )
    return [remote_files.Found(*entry) for entry in sorted(found.items())]


def _key(found: Sequence[remote_files.Found], model: Mapping[str, bytes], dtype: str) -> str:
    settings = hashlib.sha256(model[_MANIFEST]).hexdigest() + f" {_FORMAT} {dtype} {CHUNK} "
    settings += " ".join(f"{f.url} {f.stamp}" for f in found if f.stamp)
    return fingerprint([Path(f.url) for f in found if not f.stamp], settings)


def _start(out: str, key: str, overwrite: bool) -> set[str]:
    """Names of the parts of this job that are there; what is there of another one is refused."""
    names = remote_files.names_in(out)
    job = remote_files.join(out, _JOB)
    own = [name for name in names if _PART.fullmatch(name) or name == _SKIPPED]
    if _JOB in names and remote_files.read(job).decode(errors="replace") == key:
        done = {name for name in own if name != _SKIPPED}
        if done:
            log.info(f"{out} has {len(done):,} files of this job already")
        return done
    if names and not (overwrite and _JOB in names):
        raise UsageError(
            f"--out {out} is not empty; name another folder"
            + (", or give --overwrite" if _JOB in names else "")
        )
    for name in own:
        remote_files.remove(remote_files.join(out, name))
    remote_files.write(job, key.encode())  # last: by it a stopped job can be overwritten again
    return set()


def _run(chunks: Mapping[str, list[str]], worker: Mapping[str, Any], workers: int) -> None:
    import ray
    import ray.data

    if not ray.is_initialized():
        # A cluster has the CPUs that it has, and refuses to be told.
        cpus = None if os.environ.get("RAY_ADDRESS") else workers or None
        ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"name": name, "urls": urls} for name, urls in chunks.items()]
    made = ray.data.from_items(rows, override_num_blocks=min(len(rows), 10_000)).map_batches(
        Worker,
        batch_size=1,
        fn_constructor_kwargs=dict(worker),
        concurrency=min(workers or _places(ray, worker["device"]), len(rows)),
        num_cpus=1,
        num_gpus=1 if worker["device"] == "cuda" else None,
    )
    with progress("embedding", sum(map(len, chunks.values()))) as advance:
        try:
            for row in made.iter_rows():
                advance(int(row["pictures"]))
        except ray.exceptions.RayError as error:
            raise JobError(
                f"the workers failed ({_cause(error)}); finished files are kept in "
                f"{worker['out']}, the same command goes on"
            ) from error


def _cause(error: BaseException) -> str:
    """The line of a trace that names our error; Ray's own words come after it."""
    lines = str(error).strip().splitlines()
    named = [line for line in lines if _ERROR.match(line) and not line.startswith("ray.")]
    return named[-1] if named else lines[-1]


def _places(ray: Any, device: str) -> int:
    """How many workers the cluster has room for."""
    kind = "GPU" if device == "cuda" else "CPU"
    count = int(ray.cluster_resources().get(kind, 0))
    if not count:
        raise UsageError(f"device: got {device}, and the cluster has no {kind}; give cpu")
    return count


def _end(out: str, names: Sequence[str], urls: Sequence[str]) -> EmbeddedFolder:
    """Counts what the files say, and lists what was skipped."""
    pictures, skipped = 0, []
    for name in names:
        rows, told = _facts(remote_files.join(out, name))
        pictures += rows
        skipped += told
    if not pictures:
        path, reason = skipped[0]
        raise JobError(f"none of the {len(urls):,} pictures can be read; first: {path}: {reason}")
    if skipped:
        text = csv_text([("path", "reason"), *skipped])
        remote_files.write(remote_files.join(out, _SKIPPED), text.encode())
        log.warning(f"{len(skipped):,} pictures skipped, see {_SKIPPED} in {out}")
    return EmbeddedFolder(out, pictures, len(skipped))


def _facts(part: str) -> tuple[int, list[list[str]]]:
    """How many pictures are in a part, and those that were skipped."""
    try:
        with remote_files.open_file(part) as file:
            rows, told = parquet_facts(file)
        return rows, json.loads(told)["skipped"]
    except FileNotFoundError:
        raise JobError(
            f"a worker wrote {part}, and it is not there: --out must mean the same folder on all "
            "machines, and in all processes"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise JobError(
            f"{part} is damaged ({reason}); remove it, and the same command makes it again"
        ) from error
