"""`tinyssl embed --engine ray`: features by a cluster, as a folder of Parquet files.

Ray Data distributes chunks of pictures to workers. Each worker runs the bundle's ONNX model without
torch, and writes the Parquet file of a chunk atomically. A chunk whose worker dies is given to
another one, and a stopped job continues with the chunks that have no file yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl import remote_files
from tinyssl.console import log, progress
from tinyssl.data import fingerprint, read_picture
from tinyssl.errors import JobError, NothingReadable, UsageError, first_line
from tinyssl.extras import need
from tinyssl.feature_file import Features, check_dtype_and_batch, parquet_bytes, parquet_facts
from tinyssl.files import as_list, csv_text, is_remote, is_utf8
from tinyssl.neighbours import unit_rows
from tinyssl.opening import IMAGE_EXTENSIONS, reading
from tinyssl.scanning import scan

CHUNK = 512  # pictures in a file, the most that are lost with a worker
_RETRIES = 3  # of a chunk whose worker died; Ray's own default is to go on for ever
_FORMAT, _MANIFEST, _MODEL, _JOB = 1, "manifest.json", "encoder.onnx", "_job.txt"
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b[^:]*: .")
_SKIPPED = "_skipped.csv"  # readers of Parquet folders ignore a leading underscore
_PART = re.compile(r"part-\d{6,}\.parquet")


@dataclass(frozen=True)
class EmbeddedFolder:
    """The folder that was written, with its number of pictures and of skipped ones."""

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

    Unreadable pictures are listed in `_skipped.csv` in that folder. Uses the Ray cluster of
    RAY_ADDRESS, or else this machine. On several machines, paths that are not addresses must mean
    the same files everywhere.

    Args:
        bundle: a folder made by `tinyssl export`.
        data: folders, pictures, lists, or addresses such as s3://bucket/folder.
        out: a folder or an address; a job with the same encoder and pictures is continued.
        dtype: float32 or float16.
        batch_size: pictures at a time.
        workers: processes; 0 is one per CPU of the cluster.
        device: cpu, or cuda for one GPU a worker.
        overwrite: replace another job's files in `out`.

    Raises:
        UsageError: no bundle, no pictures, `out` is in use, or ray is not installed.
        JobError: no picture can be read, or a file cannot be written or read back.
    """
    _refuse(Path(bundle), dtype, batch_size, device)
    model = {name: (Path(bundle) / name).read_bytes() for name in (_MANIFEST, _MODEL)}
    found = _find(as_list(data))
    # Workers of a running cluster may have another working directory.
    folder = str(out) if is_remote(str(out)) else os.path.abspath(out)
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
    return _end(folder, list(chunks))


class Worker:
    """A process of the cluster: takes addresses of pictures, writes a Parquet file.

    Args:
        model: the bundle's manifest and model, by name.
        out: the folder.
        dtype: of the features.
        batch_size: pictures at a time.
        device: cpu or cuda.
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
        """Processes a batch of Ray Data that holds one chunk."""
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
        """The digest and the picture as the bundle takes it, or why there is none."""
        taken = self.extractor
        with reading(taken.max_pixels):
            return read_picture(
                url, taken.size, taken.rule, taken.channels, taken.dtype, remote_files.read
            )

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
    need("ray", "pyarrow", "onnxruntime", extra="ray", what="--engine ray")
    if not (bundle / _MANIFEST).is_file():
        raise UsageError(
            f"--engine ray takes a bundle, and {bundle} is none; make one with: "
            f"tinyssl export {bundle} --out bundle"
        )
    from tinyssl.export import runtime

    try:
        runtime.Extractor(bundle, _MODEL, "cpu")  # or every worker would fail with a traceback
    except runtime.BundleError as error:
        raise UsageError(str(error)) from None
    check_dtype_and_batch(dtype, batch_size)
    if device not in ("cpu", "cuda"):
        raise UsageError(f"device: got {device!r}; with --engine ray allowed are cpu and cuda")


def _find(sources: Sequence[str | Path]) -> list[remote_files.Found]:
    """Distinct pictures of all sources, sorted by name; remote ones with their versions."""
    near = [source for source in sources if not is_remote(str(source))]
    found = {str(path): "" for path in scan(near)} if near else {}
    for source in map(str, sources):
        if is_remote(source):
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
    """Names of this job's existing parts; refuses or overwrites those of another one."""
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
    remote_files.write(job, key.encode())  # last, as it marks a folder that may be overwritten
    return set()


def _run(chunks: Mapping[str, list[str]], worker: Mapping[str, Any], workers: int) -> None:
    import ray
    import ray.data

    if not ray.is_initialized():
        # The number of CPUs of a running cluster must not be given.
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
        max_task_retries=_RETRIES,
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
    """The line of a traceback that names the original error rather than Ray's."""
    lines = str(error).strip().splitlines()
    named = [line for line in lines if _ERROR.match(line) and not line.startswith("ray.")]
    return named[-1] if named else lines[-1]


def _places(ray: Any, device: str) -> int:
    """Number of workers that the cluster has room for."""
    kind = "GPU" if device == "cuda" else "CPU"
    count = int(ray.cluster_resources().get(kind, 0))
    if not count:
        raise UsageError(f"device: got {device}, and the cluster has no {kind}; give cpu")
    return count


def _end(out: str, names: Sequence[str]) -> EmbeddedFolder:
    """Counts the pictures of all parts, and lists the skipped ones."""
    pictures, skipped = 0, []
    for name in names:
        rows, told = _facts(remote_files.join(out, name))
        pictures += rows
        skipped += told
    if not pictures:
        raise NothingReadable.of(skipped)
    if skipped:
        text = csv_text([("path", "reason"), *skipped])
        remote_files.write(remote_files.join(out, _SKIPPED), text.encode())
        log.warning(f"{len(skipped):,} pictures skipped, see {_SKIPPED} in {out}")
    return EmbeddedFolder(out, pictures, len(skipped))


def _facts(part: str) -> tuple[int, list[list[str]]]:
    """Number of pictures in a part, and its skipped ones with reasons."""
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
        raise JobError(
            f"{part} is damaged ({first_line(error)}); remove it, and the same command makes it "
            "again"
        ) from error
