"""The recipe: its schema, and how it is read.

The defaults here are overridden by the YAML file, and that by `section.key=value` settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tinyssl.augment import PRESETS
from tinyssl.errors import UsageError, did_you_mean
from tinyssl.files import as_list
from tinyssl.opening import MAX_PIXELS
from tinyssl.plain_yaml import parse_yaml
from tinyssl.recipe_files import recipe_text

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
Schema = TypeVar("Schema", bound=BaseModel)

_WISHES: Mapping[str, str] = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list, such as [a, b]",
    "dict_type": "a mapping",
    "model_type": "a section of settings",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_short": "{min_length} or more values",
    "too_long": "{max_length} values at most",
    "string_too_short": "some text",
}

SHORTCUTS: Mapping[str, str] = {
    "holdout": "data.holdout",
    "epochs": "run.epochs",
    "batch_size": "optim.batch_size",
    "image_size": "data.image_size",
    "device": "run.device",
    "workers": "run.workers",
    "seed": "run.seed",
}


class Section(BaseModel):
    """Refuses unknown keys and values of the wrong type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    def to_yaml(self) -> str:
        """As YAML that reads back to an equal one."""
        return str(yaml.safe_dump(self.model_dump(), sort_keys=False))


class Data(Section):
    """Which pictures, and how they are cached."""

    sources: list[str] = Field([], description="folders, pictures, .txt or .csv lists")
    holdout: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="labels whose test pictures are left out"
    )
    image_size: Annotated[int, Field(ge=8, le=2048)] = Field(
        128, description="pixels a side in the cache and at inference"
    )
    resize: Literal["crop", "pad", "squash"] = Field(
        "crop", description="how a picture becomes square"
    )
    channels: Literal["auto", 1, 2, 3, 4] = Field("auto", description="auto: 1 or 3 by the files")
    max_pixels: Annotated[int, Field(ge=1, le=1 << 50)] = Field(
        MAX_PIXELS, description="larger pictures are skipped"
    )
    cache_dir: str | None = Field(None, description="null: the user's cache folder")


class Views(Section):
    """How views of pictures are made."""

    preset: Literal["natural", "industrial", "aligned"] = Field(
        "natural", description="fills the keys below that are null"
    )
    crop_scale: Pair = Field([0.2, 1.0], description="share of the area that a crop keeps")
    crop_ratio: Pair = Field([0.75, 1.3333], description="width over height of a crop")
    hflip: Probability | None = None
    vflip: Probability | None = None
    rotate90: Probability | None = None
    brightness: NotNegative | None = None
    contrast: NotNegative | None = None
    saturation: NotNegative | None = None
    hue: Annotated[float, Field(ge=0, le=0.5)] | None = None
    jitter: Probability | None = None
    grayscale: Probability | None = None
    blur: Probability | None = None
    blur_sigma: Pair = Field([0.1, 2.0], description="pixels, at view size")

    @model_validator(mode="after")
    def _fill_from_preset(self) -> Self:
        for key, value in PRESETS[self.preset].items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        return self

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        for key in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, key)
            if not 0 < low <= high or (key == "crop_scale" and high > 1):
                limit = " <= 1" if key == "crop_scale" else ""
                raise ValueError(f"{key}: got {[low, high]}, allowed is 0 < low <= high{limit}")
        return self


class Augment(Views):
    """What the network sees of a picture at each step."""

    view_size: Annotated[int, Field(ge=8, le=2048)] = Field(96, description="pixels a side")
    cutmix: Probability = Field(0.0, description="share of the pictures that are mixed")
    cutmix_alpha: Positive = 0.5
    pipeline: str | dict[str, Any] | None = Field(
        None, description="albumentations pipeline, serialised, or its file; replaces the above"
    )


class Encoder(Section):
    """The network to train and where its weights start."""

    name: str = Field("mobilenetv3-small", description="short name or any timm model")
    stem: Literal["standard", "small"] = Field(
        "standard", description="small: stride 1, for pictures of 64 pixels and less"
    )
    init: str = Field("random", description="random, pretrained (timm's hub) or a path")
    residuals: Literal["zero", "timm"] = Field(
        "zero", description="zero: random blocks with a skip start as the identity"
    )
    batch_norm: Literal["train", "frozen", "synced"] = Field(
        "train", description="frozen: keep the start's statistics; synced: over all processes"
    )
    levels: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        1, description="of features, from the last stage back: what the saved encoder gives"
    )
    pooling: Literal["statistics", "mean"] = Field(
        "mean", description="of stages before the last; statistics: deviations and maxima too"
    )
    descriptors: bool = Field(
        False, description="adds gradients in cells, colours and binary patterns of the picture"
    )
    components: Annotated[int, Field(ge=0, le=1 << 16)] = Field(
        0,
        description="principal components that the saved encoder gives; 0, or less than half as "
        "many pictures: all features",
    )
    whitening: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.25, description="of the components: divided by their variance to this power"
    )
    whiten_by: Literal["all", "near"] = Field(
        "all", description="that variance: of all pictures, or between near ones"
    )
    blend: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="final weights = (1 - blend) * start + blend * end (arXiv:2109.01903)"
    )


class Head(Section):
    """The projection head, used in training only."""

    hidden: Annotated[int, Field(ge=1, le=1 << 16)] = 512
    width: Annotated[int, Field(ge=1, le=1 << 16)] = Field(
        512, description="embedding width of the bank"
    )
    layers: Annotated[int, Field(ge=1, le=5)] = 2
    last_norm: bool = Field(True, description="batch norm after the last layer too")


class Bank(Section):
    """The memory bank."""

    rule: Literal["ema", "gradient"] = "ema"
    momentum: Probability = Field(0.5, description="of the ema rule")
    lr: Positive = Field(0.1, description="step of the gradient rule")
    start: Literal["forward", "random"] = Field("forward", description="how the rows are filled")
    negatives: Literal["auto", "all"] | Count = Field(
        "auto", description="rows scored beside the batch's own; auto: all up to 65,536 pictures"
    )
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="of the rows; float16: half the memory, for millions of pictures"
    )
    device: Literal["run", "host"] = Field(
        "run", description="where the rows lie; host: in the CPU's memory, not on the GPU"
    )


class Loss(Section):
    """Temperatures and weights of the terms."""

    temperature: Positive = 0.2
    near_weight: Probability = Field(
        0.0, description="share of the target for near pictures; 0: none"
    )
    near_by: Literal["descriptors", "start"] = Field(
        "descriptors", description="what makes pictures near; start: features of starting weights"
    )
    near_pictures: Annotated[int, Field(ge=1, le=256)] = Field(
        4, description="how many of them each picture has"
    )
    distill_weight: NotNegative = 0.0
    distill_temperature: Positive = 1.0


class Optim(Section):
    """The optimizer and its schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    batch_size: Annotated[int, Field(ge=2)] = 128
    base_lr: Positive = Field(0.5, description="peak for 256 pictures; scales with batch_size")
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 1e-4
    warmup_epochs: NotNegative = Field(2.0, description="at most a fifth of the run")
    clip_norm: Positive | None = None


class Run(Section):
    """Length, device, and what is logged and watched."""

    epochs: Literal["auto"] | Count = "auto"
    views: Literal["auto"] | Count = Field(
        "auto", description="epochs: auto trains on so many; auto: 160,000 on CPUs, 640,000 on GPUs"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "graphs", "off"] = Field(
        "auto",
        description="on GPUs auto and graphs replay CUDA graphs; auto compiles long runs, on all",
    )
    gpu_share: Probability = Field(
        0.5, description="of a GPU's free memory that pictures may fill; else sent batch by batch"
    )
    workers: Annotated[int, Field(ge=0)] = Field(0, description="threads; 0: one a CPU core")
    watch_every: Annotated[int, Field(ge=0)] = Field(
        5, description="epochs, and after the last; 0: after the last only"
    )
    watch_labels: str | None = Field(None, description="labels.csv: also log k-NN accuracy")
    save_every: Count = Field(1, description="epochs between checkpoints")
    log_every: Count = Field(10, description="steps between lines of metrics.jsonl")
    loggers: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        [], description="where these lines go too"
    )

    @field_validator("compile", mode="before")
    @classmethod
    def _words(cls, given: Any) -> Any:
        """YAML reads a plain on or off as true or false."""
        return ("off", "on")[given] if isinstance(given, bool) else given


class Recipe(Section):
    """A whole recipe; every section has defaults."""

    data: Data = Data()
    augment: Augment = Augment()
    encoder: Encoder = Encoder()
    head: Head = Head()
    bank: Bank = Bank()
    loss: Loss = Loss()
    optim: Optim = Optim()
    run: Run = Run()


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe by name or path and applies `section.key=value` overrides.

    Raises:
        UsageError: not a recipe, an unknown or repeated key, or a value of the wrong type.
    """
    values = recipe_values(recipe, overrides)
    if values.get("task") == "finetune":
        raise UsageError(
            f"recipe {recipe} is one for tinyssl finetune; give one for pretraining, such as "
            "mobilenetv3-small"
        )
    return validate(Recipe, values, str(recipe))


def recipe_values(recipe: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe as a dict with overrides applied, not yet validated.

    Raises:
        UsageError: not a recipe, not valid YAML, or a repeated key.
    """
    values = _parse_yaml(recipe_text(recipe), str(recipe))
    given = _parse_overrides(overrides)
    if "augment.preset" in given:
        _forget(values, "augment", PRESETS["natural"])
    if "run.views" in given and "run.epochs" not in given:
        _forget(values, "run", ["epochs"])
    for key, value in given.items():
        _put(values, key, value, str(recipe))
    return values


def shortcuts(given: Mapping[str, object]) -> list[str]:
    """Settings under their short names, such as `epochs=100`, as `section.key=value` overrides.

    None leaves what the recipe says.

    Raises:
        UsageError: a name that is not one of `SHORTCUTS`.
    """
    for name in given:
        if name not in SHORTCUTS:
            raise UsageError(
                f"unknown setting {name}{did_you_mean(name, list(SHORTCUTS))} "
                f"(allowed: {', '.join(SHORTCUTS)}; all others as section.key=value)"
            )
    return [
        f"{SHORTCUTS[name]}={_quoted(value) if name == 'holdout' else value}"
        for name, value in given.items()
        if value is not None
    ]


def _quoted(path: object) -> str:
    """A YAML string, even for a name of digits, with brackets, or empty."""
    return "'" + str(path).replace("'", "''") + "'"


def read_recipe(text: str, source: str) -> Recipe:
    """Reads a recipe's YAML; raises UsageError, naming `source`, where it is not one."""
    return validate(Recipe, _parse_yaml(text, source), source)


def validate(schema: type[Schema], values: Any, source: str) -> Schema:
    """Checks plain values against a schema.

    Raises:
        UsageError: every wrong key in one line, each with what was given and what is allowed.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        told = dict.fromkeys(_tell(e, schema) for e in _one_per_key(error.errors()))
        raise UsageError(f"recipe {source}: {'; '.join(told)}") from None


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"recipe {source} is not valid YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"recipe {source} holds no sections; see: tinyssl recipes NAME")
    # YAML reads a section of comments only as null.
    return {key: {} if value is None else value for key, value in values.items()}


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Values by their keys, such as `run.epochs`."""
    found: dict[str, Any] = {}
    for override in as_list(overrides):
        key, equals, text = override.partition("=")
        if not equals or "." not in key:
            raise UsageError(f"override {override!r} is not of the form section.key=value")
        if key in found:
            raise UsageError(f"override {key} is given twice; give it once")
        try:
            found[key] = _parse_value(text.strip())
        except ValueError as error:
            raise UsageError(f"override {override!r} is not valid YAML: {error}") from None
    return found


def _parse_value(text: str) -> Any:
    """A YAML value, except that unquoted text is taken whole: `/cache #1` has no comment."""
    value = parse_yaml(text)
    words = isinstance(value, str) and not text.startswith(("'", '"'))
    cut = value is None and text.lower() not in ("", "~", "null")
    return text if words or cut else value


def _put(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    *sections, last = key.split(".")
    for depth, name in enumerate(sections, 1):
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            place = ".".join(sections[:depth])
            told = f"{place} is {inner!r} in recipe {source} and holds no keys"
            raise UsageError(f"override {key}: {told}")
        values = inner
    values[last] = value


def _forget(values: Mapping[str, Any], section: str, keys: Iterable[str]) -> None:
    """Drops values that were derived from a setting which is now overridden."""
    found = values.get(section)
    if isinstance(found, dict):
        for key in keys:
            found.pop(key, None)


def _one_per_key(errors: Iterable[Any]) -> Iterable[Any]:
    """Merges the errors of a key: a union reports one for each member."""
    grouped: dict[tuple[Any, ...], dict[str, Any]] = {}
    for error in errors:
        found = grouped.setdefault(tuple(error["loc"][:2]), dict(error, wishes={}))
        found["wishes"][_wish(error)] = None  # an ordered set
    return grouped.values()


def _wish(error: Mapping[str, Any]) -> str:
    """What an error of pydantic asks for, in words of recipes."""
    if error["type"] in _WISHES:
        return _WISHES[error["type"]].format(**error.get("ctx", {}))
    return str(error["msg"]).removeprefix("Input should be ")


def _tell(error: Mapping[str, Any], schema: type[BaseModel]) -> str:
    location = [str(part) for part in error["loc"][:2]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        allowed = _allowed_keys(location[:-1], schema)
        named = keys_named(location[-1], schema) if len(location) > 1 else []
        meant = did_you_mean(location[-1], allowed, named)
        return f"unknown key {key}{meant} (allowed: {', '.join(allowed)})"
    if error["type"] == "value_error":
        return f"{key}.{error['ctx']['error']}"
    return f"{key}: got {error['input']!r}; wants {' or '.join(error['wishes'])}"


def _allowed_keys(section: Sequence[str], schema: type[BaseModel]) -> list[str]:
    model: Any = schema
    for name in section:
        model = model.model_fields[name].annotation
    return list(model.model_fields)


def keys_named(name: str, schema: type[BaseModel]) -> list[str]:
    """Keys in any section with this name, such as `run.views`, then those with it as a part."""
    keys = [
        f"{section}.{key}"
        for section, field in schema.model_fields.items()
        for key in getattr(field.annotation, "model_fields", ())
        if name == key or name in key.split("_")
    ]
    return sorted(keys, key=lambda key: not key.endswith(f".{name}"))
