"""Compares the fused kernels with plain torch; on a CPU by Triton's interpreter.

TRITON_INTERPRET=1 python tests/fused_on_cpu.py
"""

import torch

from tinyssl.augment import Augment, Parameters, crop_by_matrices
from tinyssl.fused import colour, crop


def compare(channels: int, h: int, w: int, size: int, dtype: torch.dtype, device: str) -> None:
    """Asserts that both agree on random pictures and parameters."""
    torch.manual_seed(h)
    pictures = torch.randint(0, torch.iinfo(dtype).max + 1, (3, h, w, channels)).to(dtype)
    pictures = pictures.to(device)
    augment = Augment(size, vflip=0.5, brightness=0.6, hue=0.5, jitter=1.0, grayscale=0.4)
    packed = augment.draw(3, h, w, torch.Generator().manual_seed(w)).pack().to(device)
    p = Parameters.unpack(packed)
    expected = crop_by_matrices(pictures, p, size)
    found = crop(pictures, p.top, p.left, p.height, p.width, p.hflip, p.vflip, size)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    coloured = augment.colour(expected, p)
    colours = p.brightness, p.contrast, p.saturation, p.hue, p.gray
    found = colour(expected, *colours)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, coloured, rtol=1e-3, atol=1e-4)
    half = colour(expected, *colours, torch.bfloat16)
    torch.testing.assert_close(half.float(), coloured, rtol=1e-2, atol=1e-3)


def main(device: str) -> None:
    """All kinds of pictures."""
    for channels, dtype in (
        (1, torch.uint8),
        (3, torch.uint8),
        (3, torch.uint16),
        (4, torch.uint8),
    ):
        for h, w, size in ((20, 24, 16), (40, 36, 12), (12, 12, 20)):
            compare(channels, h, w, size, dtype, device)


if __name__ == "__main__":
    main("cpu")
