"""ExecuTorch programs of every backbone: size, and the largest difference from torch.

    python -m tests.benchmarks.mobile --out tests/benchmarks/results/executorch-parity.json

Encoders have random weights and one level of features, scaled to unit length; pictures are smooth
noise of 128 pixels a side. Needs the extra `mobile`.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tinyssl.export.graph import Deployed
from tinyssl.export.mobile import pte_outputs, to_pte
from tinyssl.export.parity import compare

from tests.benchmarks.machine import machine
from tests.making import smooth_noise
from tinyssl.backbones import BACKBONES
from tinyssl.encoder import create_encoder


def measure(name: str, pictures: torch.Tensor) -> dict[str, Any]:
    """Size and parity of a backbone's program."""
    deployed = Deployed(create_encoder(name, seed=0), torch.uint8, unit=True).eval()
    with torch.inference_mode():
        wanted = deployed(pictures).numpy()
    model = to_pte(deployed, pictures)
    parity = compare(wanted, pte_outputs(model, pictures.numpy())[0])
    return {"backbone": name, "mb": len(model) / 1e6, "max_abs": parity.max_abs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parser.parse_args()
    pictures, results = smooth_noise(128, 3), []
    for name in BACKBONES:
        results.append(measure(name, pictures))
        print(results[-1], flush=True)
    about = {"machine": machine(), "executorch": version("executorch")}
    given.out.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
