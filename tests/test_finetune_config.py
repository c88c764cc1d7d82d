"""Recipes for fine-tuning: every bundled one is whole and true, and the two kinds stay apart."""

from pathlib import Path

import pytest
import yaml

from tinyssl.augment import PRESETS
from tinyssl.build import augment_of
from tinyssl.config import load_recipe
from tinyssl.errors import UsageError
from tinyssl.finetune_config import FOR_AUTO, FinetuneRecipe, load_finetune_recipe
from tinyssl.recipe_files import purposes, recipe_names, recipe_text

NAMES = recipe_names("finetune")


def test_there_is_one_for_every_method() -> None:
    assert set(NAMES) == set(FOR_AUTO)
    methods = [load_finetune_recipe(name).classifier.method for name in FOR_AUTO]
    assert methods == ["linear", "semi", "network"]


def test_every_recipe_is_of_one_kind() -> None:
    assert sorted([*recipe_names("pretrain"), *NAMES]) == recipe_names()


@pytest.mark.parametrize("name", NAMES)
def test_bundled_recipe_is_complete_and_its_comments_hold(name: str) -> None:
    written = yaml.safe_load(recipe_text(name))
    wanted = FinetuneRecipe().model_dump()
    assert list(written) == list(wanted)
    assert written.pop("task") == "finetune"
    for section, keys in written.items():
        missing = set(wanted[section]) - set(keys) - set(PRESETS["natural"])
        assert not missing, f"{name}: {section} lacks {missing}"
    # The recipes differ in their method only, so the rest is the schema's own defaults.
    assert load_finetune_recipe(name, ["classifier.method=linear"]) == FinetuneRecipe()


@pytest.mark.parametrize("name", NAMES)
def test_bundled_recipe_says_what_for_and_how(name: str) -> None:
    first, second, *_ = recipe_text(name).splitlines()
    assert first.startswith("# ")
    assert 20 < len(purposes()[name]) <= 90
    assert second.startswith("#     tinyssl finetune ")
    assert f"--recipe {name}" in second


@pytest.mark.parametrize("name", NAMES)
def test_resolved_recipe_reads_back(name: str, tmp_path: Path) -> None:
    recipe = load_finetune_recipe(name, ["network.lr=1e-4", "augment.preset=industrial"])
    assert recipe.network.lr == 0.0001
    assert augment_of(recipe.augment, 64).rotate90 == PRESETS["industrial"]["rotate90"]
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_finetune_recipe(tmp_path) == recipe


def test_recipes_of_the_other_kind_are_refused() -> None:
    with pytest.raises(UsageError, match="recipe few-label is one for tinyssl finetune"):
        load_recipe("few-label")
    with pytest.raises(UsageError, match="recipe resnet18 is one for tinyssl pretrain"):
        load_finetune_recipe("resnet18")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("network.view=1", "unknown key network.view; did you mean views?"),
        ("networks.views=1", "unknown key networks; did you mean network?"),
        ("classifier.strength=strong", "classifier.strength: got 'strong'"),
        ("classifier.folds=1", "wants at least 2"),
        ("classifier.method=forest", "'linear', 'network' or 'semi'"),
        ("unlabeled.alpha=1", "unlabeled.alpha: got 1; wants less than 1"),
        ("network.layer_decay=0", "network.layer_decay: got 0"),
        ("augment.view_size=64", "unknown key augment.view_size"),
        ("augment.crop_scale=[0.5,0.2]", "crop_scale: got [0.5, 0.2]"),
    ],
)
def test_wrong_override_is_told_in_one_line(override: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_finetune_recipe("few-label", [override])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
