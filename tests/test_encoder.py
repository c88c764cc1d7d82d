"""Every backbone, stem and number of channels; random weights that repeat."""

import logging
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.metrics import pairwise_distances
from torch import nn

from tests.making import precision_of_convolutions
from tinyssl.backbones import BACKBONES, count_levels, freeze_batch_norm, resolve_name, timm_weights
from tinyssl.components import near_projection, pca_projection, standardization
from tinyssl.descriptors import Descriptors
from tinyssl.encoder import (
    StatisticsPooling,
    _at_once,
    create_encoder,
    embed_pictures,
    widen,
)
from tinyssl.errors import JobError, UsageError


def pictures(n: int = 5, c: int = 3, dtype: Any = np.uint8) -> Any:
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, c)).astype(dtype)


def test_a_hub_that_is_out_of_reach_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = logging.getLogger("huggingface_hub.utils._http")

    def unreachable(*arguments: object, **options: object) -> None:
        client.warning("Retrying in 1s [Retry 1/5].")
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(JobError, match=r"cannot be had from timm's hub \(no network\)"):
        create_encoder("resnet18", pretrained=True)
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith("taking weights of resnet18 from timm's hub")
    client.warning("later")
    assert "later" in caplog.text


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("stem", ["standard", "small"])
def test_backbones_and_stems(name: str, stem: str) -> None:
    encoder = create_encoder(name, stem=stem, seed=0).eval()
    views = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert encoder(views).shape == (2, encoder.width)
        map_side = encoder.backbone.forward_features(views).shape[-1]  # type: ignore[operator]
    assert (map_side >= 4) if stem == "small" else (map_side == 2)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["mobilenetv3-small", "resnet18"])
def test_channels(name: str, channels: int) -> None:
    encoder = create_encoder(name, channels=channels).eval()
    assert encoder.channels == channels == len(encoder.mean) == len(encoder.std)
    assert encoder(torch.rand(1, channels, 32, 32)).shape == (1, encoder.width)


def test_any_timm_model_works() -> None:
    encoder = create_encoder("regnetx_002").eval()
    assert encoder(torch.rand(1, 3, 32, 32)).shape == (1, encoder.width)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    encoder = create_encoder("mobilenetv3-small", seed=0).eval()
    wide = widen(encoder, 2, pictures(), components=3, descriptors=True)
    shown = torch.from_numpy(pictures()).permute(0, 3, 1, 2) / 255
    expected = wide(shown)
    found = wide.to(dtype)(shown.to(dtype)).float()
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.98


@pytest.mark.parametrize("channels", [0, 5])
def test_wrong_channels_are_refused(channels: int) -> None:
    with pytest.raises(UsageError, match="allowed are 1 to 4"):
        create_encoder("resnet18", channels=channels)


def test_unknown_names_get_suggestions() -> None:
    with pytest.raises(UsageError, match=r"did you mean mobilenetv3.small") as caught:
        resolve_name("mobilenet-v3-small")
    assert "resnet18" in str(caught.value)


def test_small_stem_is_refused_where_there_is_none() -> None:
    with pytest.raises(UsageError, match=r"made for ResNets and MobileNets, not for vit_tiny"):
        create_encoder("vit_tiny_patch16_224", stem="small")
    with pytest.raises(UsageError, match="allowed are standard and small"):
        create_encoder("resnet18", stem="large")


@pytest.mark.parametrize("stem", ["standard", "small"])
def test_seed_decides_the_weights_and_nothing_else(
    stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    monkeypatch.delattr(torch.cuda, "manual_seed_all")  # of the GPUs, which draw none of them
    before = torch.get_rng_state()
    first = create_encoder("resnet18", seed=1, stem=stem).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    same = create_encoder("resnet18", seed=1, stem=stem).state_dict()
    other = create_encoder("resnet18", seed=2, stem=stem).state_dict()
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert not torch.equal(first["backbone.conv1.weight"], other["backbone.conv1.weight"])


def test_pretrained_without_a_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("pretrained"):
            raise OSError("no route to the hub\nsecond line")
        return original(*args, **kwargs)

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(JobError, match=r"no route to the hub\); give encoder\.init=PATH") as caught:
        create_encoder("resnet18", pretrained=True)
    assert "\n" not in str(caught.value)


def test_normalization_lives_inside() -> None:
    plain = create_encoder("resnet18", seed=0, mean=[0.0] * 3, std=[1.0] * 3).eval()
    normed = create_encoder("resnet18", seed=0, mean=[0.2] * 3, std=[0.5] * 3).eval()
    views = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(normed(views), plain((views - 0.2) / 0.5))


def test_embedding_scales_by_the_depth_and_keeps_the_modes(tmp_path: Any) -> None:
    encoder = create_encoder("mobilenetv3-small", seed=0).train()
    freeze_batch_norm(encoder)
    modes = [module.training for module in encoder.modules()]
    told: list[int] = []
    shallow = embed_pictures(encoder, pictures(), batch_size=2, progress=told.append)
    assert told == [2, 2, 1]
    assert [module.training for module in encoder.modules()] == modes
    deep = embed_pictures(encoder, pictures(dtype=np.uint16) * 257)
    np.testing.assert_allclose(shallow, deep, rtol=1e-4, atol=1e-5)
    pictures().tofile(tmp_path / "raw")
    mapped = np.memmap(tmp_path / "raw", np.uint8, "r", shape=(5, 32, 32, 3))
    np.testing.assert_allclose(embed_pictures(encoder, mapped), shallow, rtol=1e-4, atol=1e-5)
    views = torch.from_numpy(pictures()).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        direct = encoder.eval()(views).numpy()
    np.testing.assert_allclose(direct, shallow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "count", "told"), [(32, 300, [256, 44]), (256, 20, [8, 8, 4])])
def test_pictures_of_half_a_million_pixels_are_embedded_at_once_on_a_cpu(
    side: int, count: int, told: list[int]
) -> None:
    encoder = create_encoder("mobilenetv3-small", channels=1, seed=0)
    shown = np.random.default_rng(0).integers(0, 256, (count, side, side, 1), dtype=np.uint8)
    counts: list[int] = []
    found = embed_pictures(encoder, shown, progress=counts.append)
    assert counts == told
    few = embed_pictures(encoder, shown[-5:], batch_size=2)
    np.testing.assert_allclose(found[-5:], few, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "count"), [(16, 256), (256, 256), (512, 64), (8192, 1)])
def test_a_gpu_takes_fewer_of_larger_pictures(side: int, count: int) -> None:
    assert _at_once(side * side, torch.device("cuda", 1)) == count


def test_features_are_computed_in_full_float32() -> None:
    encoder, seen = create_encoder("mobilenetv3-small", seed=0), []
    encoder.register_forward_hook(lambda *_: seen.append(precision_of_convolutions()))
    embed_pictures(encoder, pictures())
    assert seen == ["ieee"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_features_of_a_gpu_are_those_of_a_cpu() -> None:
    encoder = create_encoder("resnet18", seed=0, levels=3, pooling="statistics", descriptors=True)
    expected = embed_pictures(encoder, pictures())
    found = embed_pictures(encoder, pictures(), device="cuda")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_training_goes_on_after_embedding() -> None:
    encoder = create_encoder("mobilenetv3-small", seed=0).train()
    embed_pictures(encoder, pictures())
    encoder(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_frozen_batch_norm_keeps_statistics_while_weights_train() -> None:
    encoder = create_encoder("mobilenetv3-small", seed=0).train()
    freeze_batch_norm(encoder)
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    encoder(torch.rand(4, 3, 32, 32)).square().mean().backward()
    after = [norm.running_mean for norm in norms if norm.running_mean is not None]
    assert len(norms) > 20
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(norm.weight.grad is not None for norm in norms)


@pytest.mark.parametrize("name", [*BACKBONES, "regnetx_002"])
@pytest.mark.parametrize("levels", [2, "all"])
@pytest.mark.parametrize("pooling", ["mean", "statistics"])
def test_levels_are_standardized_stages(name: str, levels: Any, pooling: Any) -> None:
    """Against the stages' outputs as hooks see them; the last level is timm's own features."""
    encoder = create_encoder(name, seed=0).eval()
    shown = np.random.default_rng(1).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    plain = embed_pictures(encoder, shown)
    maps: list[torch.Tensor] = []
    stages = {entry["module"] for entry in encoder.backbone.feature_info}  # type: ignore[union-attr]
    for key, module in encoder.backbone.named_modules():
        if key in stages:
            module.register_forward_hook(lambda _m, _i, out: maps.append(out.detach()))
    embed_pictures(encoder, shown)
    if not hasattr(encoder.backbone, "conv_head"):
        maps.pop()
    count = count_levels(encoder.backbone) if levels == "all" else levels
    expected = []
    for stage in maps[len(maps) + 1 - count :]:
        expected.append(stage.mean((2, 3)).numpy())
        if pooling == "statistics":
            expected.append(stage.var((2, 3), correction=0).add(1e-5).sqrt().numpy())
            expected.append(stage.flatten(2).max(2).values.numpy())
    expected.append(plain)

    wide = widen(encoder, levels, shown, pooling=pooling)
    found = np.split(embed_pictures(wide, shown), np.cumsum(wide.part_widths)[:-1], axis=1)
    assert wide.width == sum(wide.part_widths) == sum(part.shape[1] for part in expected)
    assert len(found) == len(expected) == (count if pooling == "mean" else 3 * count - 2)
    for part, given in zip(found, expected, strict=True):
        np.testing.assert_allclose(part.mean(0), 0, atol=1e-4)
        spread = np.maximum(given.std(0), max(0.1 * given.std(0).mean(), 1e-6))
        standard = (given - given.mean(0)) / spread / np.sqrt(given.shape[1])
        np.testing.assert_allclose(part, standard, rtol=1e-3, atol=1e-4)


def test_pooling_of_flat_maps_has_a_slope() -> None:
    """Dead channels must not make gradients of fine-tuning infinite."""
    flat = torch.zeros(2, 3, 4, 4, requires_grad=True)
    StatisticsPooling("statistics")(flat).sum().backward()  # type: ignore[no-untyped-call]
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()


def test_half_precision_is_pooled_in_float32() -> None:
    maps = torch.full((1, 1, 64, 64), 300.0).half()
    maps[..., ::2] = -300
    found = StatisticsPooling("statistics")(maps)
    torch.testing.assert_close(found, torch.tensor([[0.0, 300.0, 300.0]]))


def test_one_level_is_the_encoder_itself() -> None:
    encoder = create_encoder("resnet18")
    assert widen(encoder, 1, pictures()) is encoder
    assert "centre" not in encoder.state_dict()


@pytest.mark.parametrize("levels", [0, 6])
def test_levels_that_are_not_there(levels: int) -> None:
    with pytest.raises(UsageError, match="resnet18 has 1 to 5, or all"):
        widen(create_encoder("resnet18"), levels, pictures())


@pytest.mark.parametrize("project", [pca_projection, near_projection])
@pytest.mark.parametrize("levels", [1, "all"])
def test_components_are_a_projection_of_the_levels(levels: Any, project: Any) -> None:
    shown = np.random.default_rng(1).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    encoder = create_encoder("mobilenetv3-small", seed=0).eval()
    wide = embed_pictures(widen(encoder, levels, shown), shown)
    if levels == 1:
        centre, scale = standardization(wide, [wide.shape[1]])
        wide = (wide - centre) * scale
    by = "near" if project is near_projection else "all"
    made = widen(encoder, levels, shown, components=5, whitening=0.25, whiten_by=by)
    assert made.width == made.components == 5
    found, expected = embed_pictures(made, shown), wide @ project(wide, 5, 0.25)
    np.testing.assert_allclose(  # axes may point either way
        pairwise_distances(found), pairwise_distances(expected), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(("levels", "components"), [(1, 0), ("all", 0), ("all", 5)])
def test_descriptors_come_after_the_levels(levels: Any, components: int) -> None:
    shown = np.random.default_rng(1).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    encoder = create_encoder("mobilenetv3-small", seed=0).eval()
    plain = embed_pictures(widen(encoder, levels, shown, pooling="statistics"), shown)
    if levels == 1:
        centre, scale = standardization(plain, [plain.shape[1]])
        plain = (plain - centre) * scale
    unit = torch.from_numpy(shown).permute(0, 3, 1, 2) / 255
    normalized = (unit - encoder.mean.view(-1, 1, 1)) / encoder.std.view(-1, 1, 1)
    descriptors = Descriptors(3)
    own = descriptors(unit, normalized).numpy()
    centre, scale = standardization(own, descriptors.widths)
    expected = np.hstack([plain, (own - centre) * scale])
    if components:
        expected = expected @ pca_projection(expected, components, 0.25)
    wide = widen(encoder, levels, shown, components, 0.25, "statistics", True)
    np.testing.assert_allclose(embed_pictures(wide, shown), expected, rtol=2e-3, atol=2e-4)


def test_components_are_fewer_than_pictures() -> None:
    shown = pictures(4)
    assert widen(create_encoder("resnet18", seed=0).eval(), 2, shown, 256, 0.25).width == 3


def test_features_that_do_not_vary_stay_small() -> None:
    shown = np.repeat(pictures(1), 8, axis=0)
    features = embed_pictures(widen(create_encoder("resnet18", seed=0), "all", shown), shown)
    assert np.abs(features).max() < 1


@pytest.mark.parametrize("name", BACKBONES)
def test_quiet_residuals_start_as_the_identity_and_learn(name: str) -> None:
    encoder = create_encoder(name, residuals="zero", seed=0).eval()
    blocks = [part for part in encoder.backbone.modules() if getattr(part, "has_skip", False)]
    if name == "resnet18":  # timm itself starts it so
        blocks = [
            p for p in encoder.backbone.modules() if isinstance(p, timm.models.resnet.BasicBlock)
        ]
    same = []
    for block in (b for b in blocks if getattr(b, "downsample", None) is None):
        block.register_forward_hook(lambda _, given, out: same.append(torch.equal(given[0], out)))
    encoder(torch.rand(2, 3, 64, 64)).square().sum().backward()
    assert same
    assert all(same)
    for block in blocks:
        last = [part for part in block.modules() if isinstance(part, nn.BatchNorm2d)][-1]
        assert last.weight.grad is not None
        assert last.weight.grad.any()


@pytest.mark.parametrize("settings", [{}, {"pretrained": True, "residuals": "zero"}])
def test_timms_own_start_and_pretrained_weights_keep_their_residuals(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **k: create(*a, **{**k, "pretrained": False})
    )
    encoder = create_encoder("mobilenetv3-small", seed=0, **settings)
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.weight.eq(1).all() for norm in norms)


def test_blocks_with_other_norms_stay_as_they_are() -> None:
    plain = create_encoder("efficientnet_b0_gn", seed=0).state_dict()
    same = create_encoder("efficientnet_b0_gn", seed=0, residuals="zero").state_dict()
    assert all(torch.equal(plain[key], same[key]) for key in plain)


@pytest.mark.parametrize("name", BACKBONES)
def test_timms_weights_are_told_with_their_licence(name: str) -> None:
    """The README says so of all of them."""
    told = timm_weights(name)
    assert told.startswith(f"timm's {BACKBONES[name]}.")
    assert "licence apache-2.0; trained on ImageNet-1k" in told
    assert timm_weights("resnet18d").endswith("whose own terms allow research only")
