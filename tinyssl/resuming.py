"""Restores a run from a checkpoint, which is untrusted and validated first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from tinyssl.errors import joined_lines
from tinyssl.method import Method
from tinyssl.train import GRADIENT_NORM, Progress

_ODD = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class _Progress(_Part):
    model_config = ConfigDict(extra="forbid")

    step: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]
    window: list[dict[str, float]]
    epoch_sums: dict[str, float]


class _Optimizer(_Part):
    state: dict[int, dict[str, Tensor]]
    param_groups: list[dict[str, Any]]


class _State(_Part):
    progress: _Progress
    method: dict[str, Tensor]
    optimizer: _Optimizer
    start: dict[str, Tensor]
    rng: Tensor


def restore(
    state: Mapping[str, Any], method: Method, optimizer: torch.optim.Optimizer, steps: int
) -> Progress:
    """Restores the parts of a run from its checkpoint.

    Args:
        state: content of the checkpoint.
        method: of the same recipe; changed in place.
        optimizer: of the method; changed in place.
        steps: of the whole run.

    Returns:
        The progress of the run.

    Raises:
        ValueError: the checkpoint is damaged or of another run; the text says what is wrong.
    """
    try:
        _State.model_validate(dict(state))
        progress = Progress(**state["progress"])
        _refuse_other_course(progress, method, steps)
        _refuse_other_shapes(state["start"], method.encoder.state_dict())
        method.load_state_dict(state["method"])
        _refuse_unknown_near(method)
        _restore_optimizer(optimizer, state["optimizer"])
        torch.set_rng_state(state["rng"])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}") from None
    except _ODD as error:
        raise ValueError(joined_lines(error)[:300]) from None
    return progress


def _refuse_other_course(progress: Progress, method: Method, steps: int) -> None:
    if progress.step > steps:
        raise ValueError(f"progress.step: {progress.step:,} of {steps:,} steps")
    terms = {"instance", "loss", GRADIENT_NORM}
    terms |= {"near"} if method.near is not None else set()
    terms |= {"distillation"} if method.distill_weight else set()
    if any(set(row) - terms for row in [*progress.window, progress.epoch_sums]):
        raise ValueError(f"progress: other terms of the loss than {', '.join(sorted(terms))}")


def _refuse_other_shapes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for key, tensor in wanted.items():
        if key not in found or found[key].shape != tensor.shape:
            raise ValueError(f"start.{key} is not there, or of another shape")


def _refuse_unknown_near(method: Method) -> None:
    near, count = method.near, len(method.bank.rows)
    if near is not None and not bool(((near >= 0) & (near < count)).all()):
        raise ValueError(f"method.near: numbers of pictures outside 0 to {count - 1:,}")


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restores the momenta, but keeps the settings of the recipe."""
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    momenta = {
        number: {key: _like(parameters[number], key, value) for key, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({"state": momenta, "param_groups": state["param_groups"]})
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


def _like(parameter: Tensor, key: str, value: Tensor) -> Tensor:
    """The value in the memory layout of its weights, which fused optimizers rely on."""
    if key == "step":
        return value.reshape(())
    if value.shape != parameter.shape or value.dtype != parameter.dtype:
        raise ValueError(f"optimizer: {key} is of another shape or kind than its weights")
    return torch.empty_like(parameter, device=value.device).copy_(value)
