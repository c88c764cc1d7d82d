"""Tables of a bundle: deviations of its models from torch, and their speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyssl.console import log
from tinyssl.errors import UsageError
from tinyssl.files import with_name
from tinyssl.reporting.run_schema import Benchmark, Manifest, read_part

# Digests in a manifest, and their files in a run.
_OF = {"encoder_sha256": "encoder.safetensors", "classifier_sha256": "classifier.safetensors"}


@dataclass(frozen=True)
class Bundle:
    """The two tables of a bundle.

    Attributes:
        path: the folder.
        parity: rows of model, MB, and deviations of features from torch.
        latency: rows of `benchmark.json`; empty before `tinyssl benchmark` was run.
        machine: that they were timed on.
        digests: sha256 by file.
    """

    path: Path
    parity: list[dict[str, Any]]
    latency: list[dict[str, Any]]
    machine: str
    digests: dict[str, str]


def find_bundle(run: Path, digests: Mapping[str, str], given: str | Path | None) -> Bundle | None:
    """The given bundle, or the one that `tinyssl export` puts beside a run by default.

    Args:
        run: the run folder.
        digests: sha256 of its encoder and of its classifier, if any, by file.
        given: the bundle's folder, if given.

    Raises:
        UsageError: a given bundle does not exist, or a bundle is damaged or of other weights.
    """
    folder = Path(given) if given is not None else Path(f"{with_name(run)}-bundle")
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        if given is None:
            return None
        raise UsageError(f"no bundle in {folder}; make one with: tinyssl export {run} --out bundle")
    found = read_part(manifest, Manifest)
    own = {key: digests.get(name) for key, name in _OF.items()}
    if {key: found.get(key, digest) for key, digest in own.items()} != own:
        other = f"{folder} is of other weights than {run} has"
        if given is not None:
            raise UsageError(f"{other}; export it again, or leave the bundle out")
        log.warning(f"{other}, and left out: export it again with --overwrite")
        return None
    files = found["files"]
    benchmark = read_part(folder / "benchmark.json", Benchmark)
    return Bundle(
        path=folder,
        parity=[
            {"model": name, "mb": facts["bytes"] / 1e6} | facts["parity"]
            for name, facts in files.items()
            if facts.get("parity")
        ],
        latency=benchmark.get("rows", []),
        machine=str(benchmark.get("machine", "")),
        digests={name: facts["sha256"] for name, facts in files.items() if facts.get("parity")},
    )
