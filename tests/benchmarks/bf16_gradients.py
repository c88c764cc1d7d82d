"""Convolutions with wrong gradients in bf16 on a CPU, the basis of `tinyssl.device.check_bf16`.

    python -m tests.benchmarks.bf16_gradients --out tests/benchmarks/results/bf16-gradients-cpu.json

Compares forward and backward passes of one convolution under autocast with double precision. Memory
that was freed just before contains NaN, which reveals what a kernel leaves unwritten.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
from torch import nn

from tests.benchmarks.machine import machine
from tinyssl.files import write_text

CHANNELS = [(3, 64, 1), (64, 128, 1), (512, 512, 1), (96, 96, 96), (576, 576, 576)]
KERNELS, STRIDES, SIDES = (1, 3, 5, 7), (1, 2), (1, 2, 3, 4, 8)
TRIES, TOLERANCE = 6, 0.03


def is_wrong(channels: int, made: int, groups: int, kernel: int, stride: int, side: int) -> bool:
    """Whether in one of some tries maps or a gradient are off by more than bf16 rounding."""
    for _ in range(TRIES):
        layer = nn.Conv2d(channels, made, kernel, stride, kernel // 2, bias=False, groups=groups)
        layer.to(memory_format=torch.channels_last)
        maps = torch.randn(6, channels, side, side, requires_grad=True)
        freed = [torch.full_like(layer.weight, float("nan")) for _ in range(4)]
        del freed
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(maps)
        above = torch.randn_like(found)
        grads = torch.autograd.grad(found, (maps, layer.weight), above)
        exact = maps.detach().double().requires_grad_()
        wanted = layer.double()(exact)
        true = torch.autograd.grad(wanted, (exact, layer.weight), above.double())
        for one, other in zip((found, *grads), (wanted, *true), strict=True):
            if not (one.double() - other).norm() <= TOLERANCE * other.norm():
                return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parser.parse_args()
    shapes = list(itertools.product(CHANNELS, KERNELS, STRIDES, SIDES))
    wrong = [
        {"channels": sizes, "kernel": kernel, "stride": stride, "side": side}
        for sizes, kernel, stride, side in shapes
        if is_wrong(*sizes, kernel, stride, side)
    ]
    write_text(
        given.out,
        json.dumps({"machine": machine(), "shapes": len(shapes), "wrong": wrong}, indent=1) + "\n",
    )


if __name__ == "__main__":
    main()
