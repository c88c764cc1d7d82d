"""Recipes: every bundled one is whole and true, and wrong ones are refused in one line."""

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from tinyssl.augment import PRESETS
from tinyssl.backbones import BACKBONES
from tinyssl.build import build_method
from tinyssl.config import Recipe, load_recipe, read_recipe
from tinyssl.encoder import create_encoder
from tinyssl.errors import UsageError
from tinyssl.recipe_files import purposes, recipe_names, recipe_text

NAMES = recipe_names("pretrain")


def test_every_short_name_has_a_recipe() -> None:
    assert set(BACKBONES) | {"resnet18-small", "adapt"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_bundled_recipe_is_complete(name: str) -> None:
    """No inheritance: what a recipe does stands in it, key by key."""
    written = yaml.safe_load(recipe_text(name))
    wanted = Recipe().model_dump()
    filled_by_preset = set(PRESETS["natural"])
    assert list(written) == list(wanted)
    for section, keys in wanted.items():
        missing = set(keys) - set(written[section]) - filled_by_preset
        assert not missing, f"{name}: {section} lacks {missing}"


@pytest.mark.parametrize("name", NAMES)
def test_bundled_recipe_says_what_for_and_how(name: str) -> None:
    first, second, *_ = recipe_text(name).splitlines()
    assert first.startswith("# ")
    assert 20 < len(purposes()[name]) <= 90
    assert second.startswith("#     tinyssl pretrain ")
    assert f"--recipe {name}" in second


@pytest.mark.parametrize("name", NAMES)
def test_bundled_recipe_builds(name: str) -> None:
    recipe = load_recipe(name)
    encoder = create_encoder(recipe.encoder.name, stem=recipe.encoder.stem, seed=0)
    method = build_method(recipe, encoder, pictures=4)
    assert method.bank.rows.shape == (4, recipe.head.width)


@pytest.mark.parametrize("name", NAMES)
def test_resolved_recipe_reads_back(name: str) -> None:
    recipe = load_recipe(name, ["optim.base_lr=1e-3", "augment.preset=industrial"])
    assert recipe.optim.base_lr == 0.001
    assert read_recipe(recipe.to_yaml(), "again") == recipe


def test_order_is_defaults_then_yaml_then_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optim: {batch_size: 32, weight_decay: 1e-3}\n")
    recipe = load_recipe(path, ["optim.batch_size=16"])
    assert (recipe.optim.batch_size, recipe.optim.weight_decay) == (16, 0.001)
    assert recipe.optim.momentum == Recipe().optim.momentum


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_fills_what_is_not_given(preset: str) -> None:
    recipe = load_recipe("mobilenetv3-small", [f"augment.preset={preset}", "augment.blur=0.3"])
    for key, value in PRESETS[preset].items():
        assert getattr(recipe.augment, key) == (0.3 if key == "blur" else value)


def test_preset_on_the_command_line_beats_one_resolved_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "resolved.yaml"
    path.write_text(load_recipe("mobilenetv3-small", ["augment.preset=natural"]).to_yaml())
    recipe = load_recipe(path, ["augment.preset=aligned"])
    assert recipe.augment.hflip == 0


def test_one_override_may_be_given_as_text() -> None:
    assert load_recipe("mobilenetv3-small", "run.epochs=3").run.epochs == 3
    with pytest.raises(UsageError, match="override 'a=b' is not of the form"):
        load_recipe("mobilenetv3-small", "a=b")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.base_lrr=1", "unknown key optim.base_lrr; did you mean base_lr?"),
        ("optimm.base_lr=1", "unknown key optimm; did you mean optim?"),
        ("optim.lr=1", "unknown key optim.lr; did you mean bank.lr or optim.base_lr?"),
        ("optim.epochs=3", "did you mean run.epochs or optim.warmup_epochs?"),
        ("run.batch_size=64", "unknown key run.batch_size; did you mean optim.batch_size?"),
        ("data.size=64", "data.image_size or augment.view_size or optim.batch_size?"),
        ("optim.base_lr=fast", "optim.base_lr: got 'fast'; wants a number"),
        ("optim.batch_size=1.5", "optim.batch_size: got 1.5; wants a whole number"),
        ("optim.batch_size=1", "optim.batch_size: got 1; wants at least 2"),
        ("loss.temperature=0", "loss.temperature: got 0; wants more than 0"),
        ("data.channels=5", "data.channels: got 5; wants 'auto', 1, 2, 3 or 4"),
        ("data.resize=stretch", "'crop', 'pad' or 'squash'"),
        ("augment.crop_scale=[0.5,0.2]", "crop_scale: got [0.5, 0.2]"),
        ("augment.hflip=2", "augment.hflip: got 2; wants at most 1"),
        ("run.epochs=0", "run.epochs: got 0; wants 'auto' or at least 1"),
        ("run.epochs=three", "run.epochs: got 'three'; wants 'auto' or a whole number"),
        ("augment.crop_scale=[1, 2, 3]", "got [1, 2, 3]; wants 2 values at most"),
        ("augment.crop_scale=[a, b]", "augment.crop_scale: got 'a'; wants a number"),
        ("head.last_norm=3", "head.last_norm: got 3; wants true or false"),
        ("run.seed=true", "run.seed: got True"),
        ("data.max_pixels=99999999999999999999", "data.max_pixels: got 99999999999999999999"),
        ("head.width=99999999", "head.width: got 99999999"),
        ("augment.preset=nature", "'natural', 'industrial' or 'aligned'"),
        ("optim=3", "not of the form section.key=value"),
        ("optim.name=[", "override 'optim.name=['"),
        ("data.sources=???", "data.sources: got '???'; wants a list, such as [a, b]"),
        ("data.sources={a: 1}", "data.sources: got {'a': 1}; wants a list, such as [a, b]"),
        ("data.image_size.x=3", "override data.image_size.x: data.image_size is 128 in recipe"),
    ],
)
def test_wrong_override_is_told_in_one_line(override: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("mobilenetv3-small", [override])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("optim: {base_lr: 1, base_lr: 2}", "duplicate key"),
        ("optim: 3", "optim: got 3; wants a section of settings"),
        ("optim: [1, 2", "not valid YAML"),
        ("- 1", "holds no sections"),
        ("just text", "holds no sections"),
        ("", "holds no sections"),
        ("# no setting left", "holds no sections"),
        ("data: {image_size: '${oc.env:HOME}'}", "data.image_size: got"),
        ("run: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_wrong_file_is_told_in_one_line(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/x/cache #1", "/x/cache #1"),
        ("#x", "#x"),
        ("'/x/cache #1'", "/x/cache #1"),
        ("${HOME", "${HOME"),
        ("???", "???"),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_text_in_an_override_is_taken_whole(text: str, found: str | None) -> None:
    recipe = load_recipe("mobilenetv3-small", [f"data.cache_dir={text}"])
    assert recipe.data.cache_dir == found


def test_names_with_signs_of_interpolation_read_back(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"data": {"sources": ["/x/${cells", "/x/${a}", "???"]}})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path, ["run.epochs=3"]).data.sources == recipe.data.sources


@pytest.mark.parametrize("wrong", ["3", "[1, 2]"])
def test_a_section_without_keys_is_told_whatever_is_set(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(f"data: {wrong}\n")
    for overrides, told in (([], "data: got"), (["data.image_size=16"], "and holds no keys")):
        with pytest.raises(UsageError, match=told):
            load_recipe(tmp_path / "bad.yaml", overrides)


def test_a_section_of_comments_only_has_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data:\n  # image_size: 96\nrun:\n")
    assert load_recipe(tmp_path / "mine.yaml") == Recipe()
    assert load_recipe(tmp_path / "mine.yaml", ["run.epochs=3"]).run.epochs == 3


def test_views_count_on_top_of_a_finished_runs_epochs(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(load_recipe("resnet18", ["run.epochs=81"]).to_yaml())
    assert load_recipe(tmp_path, ["run.views=300"]).run.epochs == "auto"
    assert load_recipe(tmp_path, ["run.views=300", "run.epochs=2"]).run.epochs == 2
    assert load_recipe(tmp_path, ["run.seed=1"]).run.epochs == 81


def test_setting_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="given twice"):
        load_recipe("mobilenetv3-small", ["run.epochs=1", "run.epochs=2"])


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean resnet18"):
        load_recipe("resnet-18")


def test_every_section_is_described() -> None:
    for field in Recipe.model_fields.values():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        assert section.__doc__
