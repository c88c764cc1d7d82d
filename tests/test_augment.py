"""Every operation against torchvision, picture by picture, with the same parameters."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tinyssl.augment import (
    PRESETS,
    Augment,
    Parameters,
    blur_radius,
    crop_by_matrices,
    crop_one_by_one,
    cutmix,
    triton_works,
)
from tinyssl.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    to_grayscale,
)

EVERYTHING: dict[str, Any] = {
    "hflip": 0.5, "vflip": 0.5, "rotate90": 0.75, "blur": 0.6, "grayscale": 0.3, "jitter": 0.9,
}  # fmt: skip
NOTHING: dict[str, Any] = {
    "hflip": 0, "vflip": 0, "rotate90": 0, "blur": 0, "grayscale": 0, "jitter": 0,
}  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(b: int = 12, h: int = 40, w: int = 56, c: int = 3) -> Tensor:
    return torch.randint(0, 256, (b, h, w, c), generator=generator(c), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older torchvision resizes uint8 as such by this name only, not with AVX-512."""
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")


def reference(picture: Tensor, p: Parameters, i: int, size: int) -> Tensor:
    """One picture, (h, w, c) integers, through torchvision with the parameters of row i."""
    view = picture.permute(2, 0, 1)
    view = view if view.dtype == torch.uint8 else view.float()
    box = [int(v[i]) for v in (p.top, p.left, p.height, p.width)]
    view = F.resized_crop(view, *box, [size, size], antialias=True)
    view = view.float() / torch.iinfo(picture.dtype).max
    view = view.flip(2) if p.hflip[i] else view
    view = view.flip(1) if p.vflip[i] else view
    view = torch.rot90(view, int(p.turns[i]), (1, 2))
    if p.sigma[i] > 0:
        taps = 2 * blur_radius(size) + 1
        view = F.gaussian_blur(view, [taps, taps], [float(p.sigma[i])] * 2)
    view = (view * p.brightness[i]).clamp(0, 1)
    if len(view) == 3:
        view = F.adjust_contrast(view, float(p.contrast[i]))
        view = F.adjust_saturation(view, float(p.saturation[i]))
        view = F.adjust_hue(view, float(p.hue[i]))
        return F.rgb_to_grayscale(view, 3) if p.gray[i] else view
    factor = p.contrast[i]
    return (view * factor + (1 - factor) * view.mean()).clamp(0, 1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("h", "w", "size"), [(40, 56, 24), (56, 40, 24), (20, 20, 32)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_whole_composition(channels: int, h: int, w: int, size: int, dtype: Any) -> None:
    raw = pictures(h=h, w=w, c=channels)
    if dtype == torch.uint16:
        raw = (raw.int() * 257 + 3).clamp(max=65535).to(torch.uint16)
    augment = Augment(size, **EVERYTHING)
    p = augment.draw(len(raw), h, w, generator())
    assert p.sigma.gt(0).any()
    assert p.turns.unique().numel() > 2
    views = augment.apply(raw, p)
    assert views.shape == (12, channels, size, size)
    assert views.dtype == torch.float32
    for i, picture in enumerate(raw):
        torch.testing.assert_close(views[i], reference(picture, p, i, size), atol=2e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_both_ways_to_crop_agree(channels: int) -> None:
    """What a CPU does and what a GPU does: apart by one rounding to 8 bits per axis."""
    raw = pictures(c=channels)
    p = Augment(24, **EVERYTHING).draw(len(raw), 40, 56, generator())
    one, other = crop_one_by_one(raw, p, 24), crop_by_matrices(raw, p, 24)
    assert one.is_contiguous()
    torch.testing.assert_close(one, other, atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize("alone", ["hflip", "vflip", "rotate90", "blur", "grayscale", "jitter"])
def test_each_part_alone(alone: str) -> None:
    raw = pictures()
    augment = Augment(24, **NOTHING | {alone: 1.0})
    p = augment.draw(len(raw), 40, 56, generator(1))
    unflipped = replace(p, hflip=torch.zeros(12).bool(), vflip=torch.zeros(12).bool())
    plain = Augment(24, **NOTHING).apply(raw, unflipped)
    views = augment.apply(raw, p)
    assert (views - plain).abs().amax(dim=(1, 2, 3)).gt(1e-3).all()
    for i, picture in enumerate(raw):
        torch.testing.assert_close(views[i], reference(picture, p, i, 24), atol=2e-5, rtol=0)


COLOURS: list[tuple[Callable[..., Tensor], Callable[..., Tensor], list[float]]] = [
    (adjust_brightness, F.adjust_brightness, [0.0, 0.4, 1.0, 1.7]),
    (adjust_contrast, F.adjust_contrast, [0.0, 0.4, 1.0, 1.7]),
    (adjust_saturation, F.adjust_saturation, [0.0, 0.4, 1.0, 1.7]),
    (adjust_hue, F.adjust_hue, [-0.5, -0.1, 0.0, 0.3]),
]


@pytest.mark.parametrize(("ours", "theirs", "factors"), COLOURS)
def test_colour_operations(ours: Any, theirs: Any, factors: list[float]) -> None:
    views = torch.rand(4, 3, 17, 13, generator=generator())
    views[0, :, :2], views[1, :, :2], views[2, 1] = 0, 1, views[2, 0]  # black, white, equal planes
    found = ours(views, torch.tensor(factors))
    for i, factor in enumerate(factors):
        torch.testing.assert_close(found[i], theirs(views[i], factor), atol=1e-5, rtol=0)


def test_to_grayscale_takes_the_flagged_only() -> None:
    views = torch.rand(2, 3, 5, 5, generator=generator())
    found = to_grayscale(views, torch.tensor([True, False]))
    torch.testing.assert_close(found[0], F.rgb_to_grayscale(views[0], 3))
    assert torch.equal(found[1], views[1])


@pytest.mark.parametrize(("h", "w"), [(100, 100), (60, 100), (20, 102)])
def test_boxes_are_distributed_as_torchvisions(h: int, w: int) -> None:
    p = Augment(24).draw(4000, h, w, generator())
    assert (p.top >= 0).all()
    assert (p.left >= 0).all()
    assert (p.top + p.height <= h).all()
    assert (p.left + p.width <= w).all()
    for values in (p.top, p.left, p.height, p.width):
        assert torch.equal(values, values.round())
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(24, scale=(0.2, 1.0))
    drawn = [theirs.make_params([torch.empty(3, h, w)]) for _ in range(2000)]
    for name in ("top", "left", "height", "width"):
        ours = getattr(p, name)
        other = torch.tensor([float(d[name]) for d in drawn])
        assert ours.mean().item() == pytest.approx(other.mean().item(), abs=0.04 * max(h, w))
        assert ours.std().item() == pytest.approx(other.std().item(), abs=0.04 * max(h, w))


@pytest.mark.parametrize("ratio", [(200.0, 300.0), (0.001, 0.002)])
def test_a_crop_has_pixels_whatever_its_ratio(ratio: tuple[float, float]) -> None:
    augment = Augment(8, crop_ratio=ratio)
    views = augment(torch.zeros(3, 20, 20, 3, dtype=torch.uint8), torch.Generator().manual_seed(0))
    assert views.shape == (3, 3, 8, 8)


def test_central_crop_where_no_box_fits() -> None:
    """A strip that no allowed ratio fits gets torchvision's central crop."""
    p = Augment(8, crop_scale=(1.0, 1.0)).draw(3, 10, 101, generator())
    assert p.height.tolist() == [10, 10, 10]
    assert p.width.tolist() == [13, 13, 13]
    assert p.left.tolist() == [(101 - 13) // 2] * 3


def test_same_generator_same_views_and_each_picture_its_own() -> None:
    same = pictures(1).expand(16, -1, -1, -1)
    augment = Augment(24, **EVERYTHING)
    first, again = augment(same, generator(5)), augment(same, generator(5))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(same, generator(6)))
    assert torch.unique(first.flatten(1), dim=0).shape[0] == 16


def test_low_byte_reaches_the_view() -> None:
    low = torch.full((1, 30, 30, 1), 0x1200, dtype=torch.int32)
    augment = Augment(20, **NOTHING)
    p = augment.draw(1, 30, 30, generator())
    one, other = (augment.apply(x.to(torch.uint16), p) for x in (low, low + 1))
    torch.testing.assert_close(other - one, torch.full_like(one, 1 / 65535), atol=1e-6, rtol=0)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_presets_work(preset: str, channels: int) -> None:
    views = Augment(16, **PRESETS[preset])(pictures(c=channels), generator())
    assert views.shape == (12, channels, 16, 16)
    assert views.min() >= 0
    assert views.max() <= 1


def test_what_presets_promise() -> None:
    aligned, industrial = PRESETS["aligned"], PRESETS["industrial"]
    assert aligned["hflip"] == aligned["vflip"] == aligned["rotate90"] == 0
    assert industrial["hflip"] == industrial["vflip"] == 0.5
    assert industrial["rotate90"] > 0
    assert industrial["hue"] == 0


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_views_can_be_blurred(size: int) -> None:
    assert Augment(size, blur=1.0)(pictures(), generator()).isfinite().all()


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_cutmix_against_a_loop(alpha: float) -> None:
    b, h, w = 64, 12, 16
    views = torch.rand(b, 1, h, w, generator=generator())
    mixed, partner, weight = cutmix(views, generator(1), alpha=alpha, probability=0.7)
    assert sorted(partner.tolist()) == list(range(b))
    for i in range(b):
        own = mixed[i, 0] == views[i, 0]
        assert weight[i].item() == pytest.approx(own.float().mean().item()) or partner[i] == i
        assert torch.equal(mixed[i, 0][~own], views[partner[i], 0][~own])
        rows, columns = (~own).any(1).nonzero(), (~own).any(0).nonzero()
        if len(rows):
            box = (~own)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all()
    assert 0.05 < weight.eq(1).float().mean() < 0.65


def test_cutmix_shares_follow_the_beta_distribution() -> None:
    """Boxes cut at the border keep more, so the mean share lies between 1/2 and that of lambda."""
    views = torch.zeros(4000, 1, 32, 32)
    _, _, weight = cutmix(views, generator(), alpha=1.0, probability=1.0)
    assert 0.5 < weight.mean() < 0.75
    _, _, none = cutmix(views, generator(), alpha=1.0, probability=0.0)
    assert none.eq(1).all()


def test_views_of_a_share_are_those_in_the_whole_batch() -> None:
    pictures = torch.randint(0, 256, (5, 20, 24, 3), dtype=torch.uint8)
    augment = Augment(16, blur=0.5, rotate90=0.5)
    whole = augment(pictures, torch.Generator().manual_seed(0))
    for own in (slice(0, 2), slice(2, 5)):
        part = augment(pictures[own], torch.Generator().manual_seed(0), own, 5)
        torch.testing.assert_close(part, whole[own], rtol=0, atol=1e-6)


def test_packed_parameters_are_the_same() -> None:
    pictures = torch.randint(0, 256, (3, 20, 24, 3), dtype=torch.uint8)
    augment = Augment(16, blur=0.5, rotate90=0.5, vflip=0.5)
    parameters = augment.draw(3, 20, 24, torch.Generator().manual_seed(0))
    plain = augment.apply(pictures, parameters)
    assert torch.equal(augment.apply_packed(pictures, parameters.pack()), plain)
    half = Augment(16, blur=0.5, rotate90=0.5, vflip=0.5, dtype=torch.bfloat16)
    assert torch.equal(half.apply_packed(pictures, parameters.pack()), plain.bfloat16())


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton for this system")
def test_fused_kernels_by_the_interpreter() -> None:
    """In a process of its own: what is imported here already has been compiled for GPUs."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    script = Path(__file__).with_name("fused_on_cpu.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)], env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
@pytest.mark.filterwarnings("ignore")  # of Triton, about itself
@pytest.mark.parametrize("capability", [70, 90])
@pytest.mark.parametrize(
    ("kernel", "types", "constants"),
    [
        ("_crop", "*u8 *fp32 *fp32 fp32 i32 i32 i32 i32 i32 i32", {"C": 3}),
        ("_crop", "*u16 *fp32 *fp32 fp32 i32 i32 i32 i32 i32 i32", {"C": 1}),
        ("_partial_sums", "*fp32 *fp32 *fp32 i32 i32", {"C": 3}),
        ("_colour", "*fp32 *fp32 *fp32 *bf16 i32 i32 i32", {}),
        ("_contrast", "*fp32 *fp32 *fp32 *fp32 i32 i32 i32", {}),
    ],
)
def test_fused_kernels_compile_for_gpus(
    kernel: str, types: str, constants: dict[str, int], capability: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Which needs none; the interpreter does not look at types."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tinyssl import fused

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function, constants = getattr(fused, kernel), constants | {"BLOCK": 512}
    given = [*types.split(), *["constexpr"] * len(constants)]
    signature = dict(zip(function.arg_names, given, strict=True))
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]


@pytest.mark.parametrize(
    ("lacking", "capability", "expected"),
    [(None, (9, 0), True), ("triton", (9, 0), False), (None, (6, 1), False)],
)
def test_what_fused_kernels_need(
    lacking: str | None,
    capability: tuple[int, int],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    monkeypatch.setattr("tinyssl.augment.missing", lambda device: lacking)
    assert triton_works.__wrapped__() is expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fused_kernels_on_a_gpu() -> None:
    from tests.fused_on_cpu import main

    main("cuda")
