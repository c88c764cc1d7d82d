"""What a bundle says of its models: how far from torch, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyssl.errors import UsageError
from tinyssl.files import with_name
from tinyssl.reporting.run_schema import Benchmark, Manifest, read_part


@dataclass(frozen=True)
class Bundle:
    """The two tables of a bundle.

    Attributes:
        path: the folder.
        parity: rows of model, MB, and how far its features are from torch's.
        latency: rows of `benchmark.json`; empty until `tinyssl benchmark` was run.
        machine: that they were timed on.
        digests: sha256 by file.
    """

    path: Path
    parity: list[dict[str, Any]]
    latency: list[dict[str, Any]]
    machine: str
    digests: dict[str, str]


def find_bundle(run: Path, given: str | Path | None) -> Bundle | None:
    """The bundle that is named, or the one that `tinyssl export` puts beside a run by default.

    Raises:
        UsageError: a bundle is named and none is there, or it is damaged.
    """
    folder = Path(given) if given is not None else Path(f"{with_name(run)}-bundle")
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        if given is None:
            return None
        raise UsageError(f"no bundle in {folder}; make one with: tinyssl export {run} --out bundle")
    files = read_part(manifest, Manifest)["files"]
    benchmark = read_part(folder / "benchmark.json", Benchmark)
    return Bundle(
        path=folder,
        parity=[
            {"model": name, "mb": facts["bytes"] / 1e6} | facts["parity"]
            for name, facts in files.items()
            if "parity" in facts
        ],
        latency=benchmark.get("rows", []),
        machine=str(benchmark.get("machine", "")),
        digests={name: facts["sha256"] for name, facts in files.items() if "parity" in facts},
    )
