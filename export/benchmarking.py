"""`tinyssl benchmark`: latency of each model of a bundle on this machine, compared with torch."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from tinyssl.console import log, progress, score_table
from tinyssl.encoder import create_encoder
from tinyssl.errors import JobError, UsageError, first_line
from tinyssl.extras import EXPORT, need
from tinyssl.files import write_text
from tinyssl.machine import processor
from tinyssl.weights import layout

from .runtime import ENGINE, BundleError, latency, read_manifest

COLUMNS = (
    "model", "provider", "batch", "threads", "median_ms", "p95_ms", "pictures_per_s", "peak_mb",
    "file_mb", "status",
)  # fmt: skip


def benchmark(
    bundle: str | Path,
    *,
    batches: Sequence[int] = (1, 8),
    threads: int = 1,
    seconds: float = 2.0,
) -> list[dict[str, Any]]:
    """Times a bundle's ONNX models and engine, each in its own process, and uncompiled torch.

    `encoder.pte` is not timed, since phones differ too much from this machine.

    Args:
        bundle: made by `export`; `benchmark.json` and `benchmark.csv` are written there, or a
            warning says why they cannot be.
        batches: batch sizes, in pictures.
        threads: number of CPU threads; 0 lets each library choose.
        seconds: duration of each measurement.

    Returns:
        One row for each model and batch size with the keys of `COLUMNS`; latencies in ms, sizes in
        MB. `status` is `ok`, or the reason why a model cannot run.

    Raises:
        UsageError: no bundle there, no batch size, or negative threads or seconds.
    """
    need(*EXPORT, extra="export")
    folder, batches = Path(bundle), list(map(int, batches))  # numpy's integers are no JSON
    if not batches or min(batches) < 1:
        raise UsageError(f"batch: got {batches}; each must be at least 1, such as 1,8")
    if threads < 0:
        raise UsageError(f"threads: got {threads}; give 0 (all) or more")
    if not 0 <= seconds < math.inf:
        raise UsageError(f"seconds: got {seconds}; give 0 or more")
    try:
        manifest = read_manifest(folder)
    except BundleError as error:
        raise UsageError(str(error)) from None
    models = [name for name in manifest["files"] if name.endswith(".onnx")]
    models += [ENGINE] if (folder / ENGINE).exists() else []
    rows = []
    with progress("timing", (len(models) + 1) * len(batches), "models") as advance:
        for row in _rows(folder, manifest, models, batches, threads, seconds):
            rows.append({key: row.get(key) for key in COLUMNS})
            advance(1)
    try:
        _write(folder, rows)
    except JobError as error:  # the bundle may be read-only; its rows took minutes to measure
        log.warning(str(error))
    return rows


def _write(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    told = {"machine": processor(), "power": power(), "rows": rows}
    write_text(folder / "benchmark.json", json.dumps(told, indent=1) + "\n")
    write_text(folder / "benchmark.csv", _csv(rows))


def power(devices: Path = Path("/sys/class/devfreq")) -> dict[str, str]:
    """The power mode of a Jetson and the clock rates of its devices, where they can be read."""
    told = {}
    if shutil.which("nvpmodel"):
        done = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True)
        told["nvpmodel"] = " ".join(done.stdout.split())
    for clock in sorted(devices.glob("*/cur_freq")):
        try:
            told[f"{clock.parent.name} Hz"] = clock.read_text(encoding="utf-8").strip()
        except OSError:
            continue
    return told


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a table of at most 80 columns."""
    columns = ("on", "batch", "median ms", "p95 ms", "pictures/s", "peak MB", "file MB")
    shown = score_table(None, columns)
    for row in rows:
        measured = [_short(row[key]) for key in COLUMNS[4:9]]
        shown.add_row(row["model"], row["provider"] or "-", str(row["batch"]), *measured)
        if row["status"] != "ok":
            shown.add_row(f"  {row['status']}")
    return shown


def _rows(
    folder: Path,
    manifest: dict[str, Any],
    models: Sequence[str],
    batches: Sequence[int],
    threads: int,
    seconds: float,
) -> Iterator[dict[str, Any]]:
    for batch in batches:
        common = {"batch": batch, "threads": threads}
        yield common | _time_torch(manifest, batch, threads, seconds)
        for model in models:
            file_mb = (folder / model).stat().st_size / 1e6 if (folder / model).exists() else None
            timed = _time_model(folder, model, batch, threads, seconds)
            yield common | {"model": model, "file_mb": file_mb} | timed


def _time_model(
    folder: Path, model: str, batch: int, threads: int, seconds: float
) -> dict[str, Any]:
    command = [
        sys.executable, str(Path(__file__).with_name("runtime.py")), "--bundle", str(folder),
        "--benchmark", "--json", "--variant", model, "--batch", str(batch),
        "--threads", str(threads), "--seconds", str(seconds),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip() or "ended without a message").splitlines()[-1]
        return {"status": reason.removeprefix("runtime: ")}
    found: dict[str, Any] = json.loads(done.stdout)
    found["provider"] = found["provider"].removesuffix("ExecutionProvider")
    return found | {"status": "ok"}


def _time_torch(
    manifest: dict[str, Any], batch: int, threads: int, seconds: float
) -> dict[str, Any]:
    """Times the same network with random weights, which take as long as trained ones."""
    taken, told = manifest["input"], manifest["encoder"]
    encoder = create_encoder(told["name"], channels=taken["channels"], **layout(told))
    from .graph import Deployed  # imports onnx, which importing this module must not need

    row, dtype = {"model": "torch eager", "provider": "CPU"}, getattr(torch, taken["dtype"])
    deployed = Deployed(encoder, dtype, unit=True).eval()
    shape = (batch, taken["size"], taken["size"], taken["channels"])
    own = torch.Generator().manual_seed(0)  # the global generator keeps its state
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        pictures = torch.randint(0, 256, shape, generator=own, dtype=torch.uint8).to(dtype)
        with torch.inference_mode():
            found = latency(lambda: deployed(pictures), batch, seconds)
    except RuntimeError as error:  # such as too little memory for the batch
        return row | {"status": first_line(error)}
    finally:
        torch.set_num_threads(before)
    return row | {"status": "ok"} | found


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
