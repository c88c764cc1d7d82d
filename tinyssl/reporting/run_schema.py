"""Schemas of the JSON files of runs and bundles, for the parts that reports use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tinyssl.errors import UsageError
from tinyssl.files import LARGEST_RESULT, read_json

Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Judged(_Part):
    confusion: list[list[Count]] = []
    C: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    @field_validator("confusion")
    @classmethod
    def _square(cls, rows: list[list[int]]) -> list[list[int]]:
        if any(len(row) != len(rows) for row in rows):
            raise ValueError("its rows and columns differ")
        if not any(map(sum, rows)):
            raise ValueError("it counts no picture")
        return rows


class _Shots(_Part):
    mean: Finite
    half_width: float
    draws: Count


class _Encoder(_Part):
    knn: _Judged = _Judged()
    linear: _Judged = _Judged()
    few_shot: dict[str, _Shots] = {}
    rankme: float | None = None
    retrieval: float | None = None
    taught_by_test: Count = 0


class _Classifier(_Judged):
    seen_in_finetuning: Count = 0


class _Point(_Part):
    method: Literal["linear", "finetune", "scratch"]
    select: str
    labels: Annotated[int, Field(ge=1)]
    mean: Finite
    half_width: float
    draws: Count


class Evaluation(_Part):
    """`eval.json`."""

    encoders: dict[str, _Encoder]
    classes: list[str]
    train: Count
    test: Count
    split: Any
    fewest: Count | None = None
    pretrained_on: Count = 0
    test_in_training: Count = 0
    weights: str | None = None
    classifier: _Classifier = _Classifier()
    curve: list[_Point] = []


class _HeldOut(_Part):
    balanced_accuracy: Finite
    accuracy: Finite
    log_loss: Finite


class Finetuned(_Part):
    """`finetune.json`."""

    run: str
    recipe: str
    reason: str
    labels: Annotated[dict[str, Count], Field(min_length=1)]
    held_out: dict[str, _HeldOut]
    taught: Count = 0
    unlabeled_from: list[str] = []
    seconds: Finite = 0.0
    versions: dict[str, Any] = {}


class Machine(_Part):
    """`machine.json`."""

    pictures: Count | None = None
    peak_memory_mb: Finite | None = None
    peak_gpu_memory_mb: Finite | None = None


class _Distances(_Part):
    max_abs: float
    mean_cosine: float
    worst_cosine: float
    centred_cosine: float
    same_nearest: float


class _File(_Part):
    size: Annotated[int, Field(ge=0, alias="bytes")]
    sha256: str
    parity: _Distances | None = None


class Manifest(_Part):
    """`manifest.json` of a bundle."""

    encoder_sha256: str | None = None
    classifier_sha256: str | None = None
    files: dict[str, _File]


class _Timed(_Part):
    model: str
    status: str
    provider: str | None = None
    batch: int
    median_ms: float | None = None
    p95_ms: float | None = None
    pictures_per_s: float | None = None
    peak_mb: float | None = None

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.status == "ok" and None in (self.median_ms, self.p95_ms, self.pictures_per_s):
            raise ValueError("a model that ran has no times")
        return self


class Benchmark(_Part):
    """`benchmark.json` of a bundle."""

    rows: list[_Timed]


def read_part(path: Path, schema: type[BaseModel]) -> dict[str, Any]:
    """The content of a JSON file; empty if there is none.

    Raises:
        UsageError: it is damaged, or does not match the schema.
    """
    if not path.is_file():
        return {}
    try:
        found = read_json(path, LARGEST_RESULT)
        schema.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path} is damaged: {place[:80]}: {first['msg']}; remove it") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}; remove it") from None
    return dict(found)
