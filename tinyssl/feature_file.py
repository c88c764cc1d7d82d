"""Files of features: parquet, npz or csv, written in blocks of rows.

n = pictures, d = width. The columns are `path`, `digest` (of the picture file's bytes) and
`features`; csv has `feature0`, `feature1`, ... instead of the last.
"""

from __future__ import annotations

import csv
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.errors import UsageError, first_line
from tinyssl.files import atomic

DTYPES = ("float32", "float16")
# What the readers raise for other files and damaged ones.
DAMAGED = (
    OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, MemoryError,
    csv.Error, zlib.error, struct.error, NotImplementedError, OverflowError, SyntaxError,
    AttributeError, TypeError,
)  # fmt: skip


@dataclass(frozen=True)
class Features:
    """Features of n pictures.

    Attributes:
        paths: n absolute paths.
        digests: n digests of the files' bytes.
        features: (n, d) float32 or float16.
    """

    paths: list[str]
    digests: list[str]
    features: NDArray[Any]


Blocks = Iterable[Features]
Shape = tuple[int, int]
DType = np.dtype[Any]


def check_format(out: Path) -> None:
    """Raises UsageError for an unknown ending, a path that is no file, or a missing pyarrow."""
    if out.suffix not in _FORMATS:
        raise UsageError(f"--out: got {out}; its name must end in {', '.join(_FORMATS)}")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise UsageError(
            'parquet needs pyarrow; install with: pip install "tinyssl[parquet]", or name a file '
            "that ends in .npz or .csv"
        )
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file")
    if out.exists() and not out.is_file():  # reading a pipe would block
        raise UsageError(f"--out {out} is no plain file; name one")


def check_dtype_and_batch(dtype: str, batch_size: int) -> None:
    """Raises UsageError for an unknown dtype, or a batch size below 1."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype: got {dtype!r}, allowed are {', '.join(DTYPES)}")
    if batch_size < 1:
        raise UsageError(f"batch_size: got {batch_size}; give 1 or more")


def write_features(out: Path, blocks: Blocks, shape: Shape, dtype: Any, key: str) -> None:
    """Writes blocks of features one after the other, atomically.

    Args:
        out: its suffix gives the format.
        blocks: n rows in all.
        shape: (n, d).
        dtype: float32 or float16.
        key: identifies what these are features of; returned by `read_key`.

    Raises:
        JobError: the file cannot be written.
    """
    with atomic(out, shape[0] * shape[1] * np.dtype(dtype).itemsize) as file:
        _FORMATS[out.suffix].write(file, blocks, shape, np.dtype(dtype), key)


def read_features(path: str | Path) -> Features:
    """What `write_features` wrote; csv comes back as float32.

    Raises:
        UsageError: no such file, or not a file of features.
    """
    check_format(Path(path))
    try:
        return _FORMATS[Path(path).suffix].read(Path(path))
    except FileNotFoundError:
        raise UsageError(f"no features at {path}; make them with tinyssl embed") from None
    except DAMAGED as error:
        raise UsageError(f"{path} is not a file of features: {first_line(error)}") from None


def read_key(path: Path) -> str | None:
    """The key a file was written with; None if there is none, as in csv."""
    try:
        return _FORMATS[path.suffix].key(path)
    except DAMAGED:
        return None


def parquet_bytes(block: Features, width: int, dtype: Any, key: str) -> bytes:
    """A Parquet file as `write_features` writes it, of one block, which may have no rows."""
    file = io.BytesIO()
    _write_parquet(file, [block], (len(block.paths), width), np.dtype(dtype), key)
    return file.getvalue()


def parquet_facts(file: IO[bytes]) -> tuple[int, str]:
    """Number of rows and key of a Parquet file of features; only its footer is read.

    Raises:
        ValueError: it is not such a file.
    """
    from pyarrow import ArrowInvalid, parquet

    try:
        with parquet.ParquetFile(file) as opened:
            key = (opened.schema_arrow.metadata or {})[b"tinyssl"].decode()
            return int(opened.metadata.num_rows), key
    except (ArrowInvalid, KeyError) as error:
        raise ValueError(str(error)) from None


def _write_npz(file: IO[bytes], blocks: Blocks, shape: Shape, dtype: DType, key: str) -> None:
    paths: list[str] = []
    digests: list[str] = []
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            for block in blocks:
                member.write(np.ascontiguousarray(block.features, dtype).tobytes())
                paths += block.paths
                digests += block.digests
        for name, values in (("path", paths), ("digest", digests), ("key", key)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(values, str), allow_pickle=False)


def _read_npz(path: Path) -> Features:
    with np.load(path, allow_pickle=False) as found:
        return Features(found["path"].tolist(), found["digest"].tolist(), found["features"])


def _npz_key(path: Path) -> str | None:
    with np.load(path, allow_pickle=False) as found:
        return str(found["key"])


def _write_csv(file: IO[bytes], blocks: Blocks, shape: Shape, dtype: DType, key: str) -> None:
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
    writer = csv.writer(text)
    writer.writerow(["path", "digest", *(f"feature{i}" for i in range(shape[1]))])
    digits = ".5g" if dtype == np.float16 else ".9g"  # enough to restore every bit
    for block in blocks:
        for path, digest, row in zip(block.paths, block.digests, block.features, strict=True):
            writer.writerow([path, digest, *(format(value, digits) for value in row.tolist())])
    text.flush()
    text.detach()


def _read_csv(path: Path) -> Features:
    paths, digests, rows = [], [], []
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header[:2] != ["path", "digest"]:
            raise ValueError(f"its first columns are {', '.join(header[:2])}, not path, digest")
        for row in reader:
            paths.append(row[0])
            digests.append(row[1])
            rows.append(np.array(row[2:], np.float32))
    return Features(paths, digests, np.stack(rows))


def _write_parquet(file: IO[bytes], blocks: Blocks, shape: Shape, dtype: DType, key: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kind = pa.list_(pa.from_numpy_dtype(dtype), shape[1])
    columns = [("path", pa.string()), ("digest", pa.string()), ("features", kind)]
    schema = pa.schema(columns, metadata={"tinyssl": key})
    # Compression would take time and save only a tenth.
    with parquet.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for block in blocks:
            flat = pa.array(np.ascontiguousarray(block.features, dtype).ravel())
            rows = pa.FixedSizeListArray.from_arrays(flat, type=kind)
            arrays = [pa.array(block.paths, pa.string()), pa.array(block.digests), rows]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _read_parquet(path: Path) -> Features:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        table = file.read(columns=["path", "digest", "features"]).combine_chunks()
    width = table.schema.field("features").type.list_size
    chunks = table["features"].chunks
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    features = np.concatenate(flat).reshape(-1, width)
    return Features(table["path"].to_pylist(), table["digest"].to_pylist(), features)


def _parquet_key(path: Path) -> str | None:
    with path.open("rb") as file:
        return parquet_facts(file)[1]


@dataclass(frozen=True)
class _Format:
    write: Callable[[IO[bytes], Blocks, Shape, DType, str], None]
    read: Callable[[Path], Features]
    key: Callable[[Path], str | None]


_FORMATS: Mapping[str, _Format] = {
    ".parquet": _Format(_write_parquet, _read_parquet, _parquet_key),
    ".npz": _Format(_write_npz, _read_npz, _npz_key),
    ".csv": _Format(_write_csv, _read_csv, lambda _: None),
}
