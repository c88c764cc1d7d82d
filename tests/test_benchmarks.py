"""Scripts of figures: what they were given is told before hours are spent, nothing is mixed up."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.benchmarks import domains, fewlabel, folds
from tests.benchmarks.checkpoint import features_of, load_checkpoint
from tests.benchmarks.levels import has_one_level
from tests.making import TINY, make_pictures
from tinyssl.encoder import create_encoder, widen
from tinyssl.errors import UsageError
from tinyssl.recipe_files import recipe_text
from tinyssl.weights import save_encoder


def test_own_loops_tell_of_sets_and_rates_that_are_not_there(tmp_path: Path) -> None:
    pytest.importorskip("lightly")
    from tests.benchmarks.quality.own_loop import chosen, lacking

    tried = [{"settings": {"lr": 1.0}, "knn": None}, {"settings": {"lr": 0.1}, "knn": 40.0}]
    best = chosen({"simclr": [*tried, {"settings": {"lr": 0.3}, "knn": 50.0}]}, ["simclr", "byol"])
    assert best == {"simclr": {"lr": 0.3}}
    given = argparse.Namespace(
        sets=["one", "two"], data=tmp_path, costs=tmp_path, methods=["simclr", "byol"]
    )
    (tmp_path / "one").mkdir()
    assert "has no two: folders" in str(lacking(given, best))
    (tmp_path / "two").mkdir()
    assert str(lacking(given, best)).endswith("rates for byol")
    given.methods = ["simclr"]
    assert lacking(given, best) is None


def test_few_labels_go_on_only_with_the_same_run_and_settings(tmp_path: Path) -> None:
    out, head = tmp_path / "out.json", {"set": "one", "run": {"levels": 6}}
    assert fewlabel.earlier(out, head, []) == []
    rows = [{"settings": ["a=1"], "job": "run/few-label"}]
    out.write_text(json.dumps(head | {"rows": rows}))
    assert fewlabel.earlier(out, head, ["a=1"]) == rows
    for other, settings in ((head, []), (head | {"run": {"levels": 1}}, ["a=1"])):
        with pytest.raises(UsageError, match="give another --out"):
            fewlabel.earlier(out, other, settings)


def test_folds_blend_up_to_the_end_of_training(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("one", "two"):  # alike to any encoder, so that its weights decide the scores
        (tmp_path / "set" / "train" / name).mkdir(parents=True)
        for number in range(24):
            noise = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "set" / "train" / name / f"{number}.png")
    found = []
    for blend in ("1.0", "0.5"):
        recipe = tmp_path / f"{blend}.yaml"
        text = recipe_text("mobilenetv3-small").replace("blend: 1.0", f"blend: {blend}")
        recipe.write_text(text)
        settings = [*TINY, "encoder.levels=1", "encoder.components=0", "encoder.descriptors=false"]
        found.append(folds.study(tmp_path / "set", str(recipe), settings, False)["by_blend"])
    assert found[0] == found[1]
    assert found[0]["1.0"] != found[0]["0.5"]


def test_levels_are_told_apart_only_in_a_run_of_one(tmp_path: Path) -> None:
    encoder = create_encoder("mobilenetv3-small", channels=1, seed=0)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), dtype=np.uint8)
    save_encoder(encoder, tmp_path, image_size=32, resize="crop")
    assert has_one_level(tmp_path)
    for wide in (widen(encoder, 2, pictures), widen(encoder, 1, pictures, descriptors=True)):
        save_encoder(wide, tmp_path, image_size=32, resize="crop")
        assert not has_one_level(tmp_path)


def test_a_bare_checkpoint_has_the_features_of_timm(tmp_path: Path) -> None:
    paths = sorted(make_pictures(tmp_path / "pictures").iterdir())
    whole = timm.create_model("test_efficientnet").eval()
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    bare = load_checkpoint("test_efficientnet", tmp_path / "weights.safetensors")
    config = timm.data.resolve_model_data_config(whole)
    transform = timm.data.create_transform(**config, is_training=False)
    assert features_of(bare, paths, 32).shape[0] == len(paths) == 12
    first = transform(Image.open(paths[0]))[None]
    with torch.inference_mode():
        logits = whole.classifier(torch.from_numpy(features_of(bare, paths[:1], None)))
        torch.testing.assert_close(logits, whole(first))


@pytest.mark.parametrize("given", [["loss.temperature=0.1"], ["--recipe", "resnet18"]])
def test_the_demo_drops_no_setting(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["domains", "elpv", "--out", str(out), *given])
    with pytest.raises(SystemExit):
        domains.main()
    assert "give a folder" in capsys.readouterr().err
    assert not out.exists()


def test_means_of_runs_have_the_interval_of_few() -> None:
    def run(score: float) -> dict:
        one = {"balanced_accuracy": score}
        shots = {str(shots): {"mean": score} for shots in domains.SHOTS}
        return {"encoders": {"pretrained": {"knn": one, "linear": one, "few_shot": shots}}}

    found = domains.means([run(0.6), run(0.7), run(0.8)])["pretrained"]["knn"]
    assert found == {"mean": 70.0, "half_width": 24.84}  # 4.303 / sqrt(3) times 10
    alone = domains.means([run(0.6)])["pretrained"]["knn"]
    assert alone == {"mean": 60.0, "half_width": None}
