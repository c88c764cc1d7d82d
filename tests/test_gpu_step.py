"""What a GPU computes in a step, without one: on tensors of a device and a shape but no numbers.

Such tensors refuse what a GPU would: operands on two devices. And they refuse to be read, which is
how a step would wait for the GPU.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)

from tinyssl.build import augment_from, build_method, make_plan
from tinyssl.config import Recipe, load_recipe
from tinyssl.encoder import create_encoder
from tinyssl.method import Method, Mix
from tinyssl.train import GRADIENT_NORM, optimize

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9),
    reason="torch 2.8 looks for a real GPU where tensors pretend to be on one",
)

PICTURES, BATCH, SAMPLED = 40, 4, 20
SMALL = ("data.image_size=48", "augment.view_size=32", "run.epochs=1")
SETTINGS = [
    (),
    ("loss.near_weight=0", "loss.distill_weight=1"),
    ("augment.cutmix=0.5",),
    ("augment.preset=industrial", "augment.blur=0.5"),
    ("bank.rule=ema", "bank.device=host", "bank.dtype=float16"),
    ("bank.rule=gradient", "bank.dtype=float16"),
    (f"bank.negatives={SAMPLED}",),
    (f"bank.negatives={SAMPLED}", "augment.cutmix=0.5", "bank.device=host"),
]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU of fake tensors. Backward needs a real one, so gradients come from nowhere."""

    def backward(loss: Tensor) -> None:
        assert loss.is_cuda
        assert loss.requires_grad

    monkeypatch.setattr(torch.autograd, "backward", backward)
    with FakeTensorMode():
        yield


def on_gpu(module: nn.Module) -> None:
    """Puts fake tensors on the GPU in place of all parameters and buffers."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(like(parameter, "cuda")))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, like(buffer, "cuda"))


def like(tensor: Tensor, device: str) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def numbers(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64, device="cuda")


def method_on_gpu(recipe: Recipe) -> Method:
    with unset_fake_temporarily():
        encoder = create_encoder(recipe.encoder.name, seed=0)
        method = build_method(recipe, encoder, PICTURES)
    on_gpu(method.encoder)
    on_gpu(method.head)
    host = recipe.bank.device == "host"
    method.bank.rows = like(method.bank.rows, "cpu" if host else "cuda")
    if method.near is not None:
        method.near = like(method.near, "cuda")
    return method.train()


@pytest.mark.parametrize("settings", SETTINGS, ids=" ".join)
def test_a_step_stays_on_the_gpu_and_does_not_wait_for_it(gpu: None, settings: tuple[str]) -> None:
    recipe = load_recipe("mobilenetv3-small", [*SMALL, *settings])
    plan = make_plan(recipe, PICTURES, torch.device("cpu"))
    method = method_on_gpu(recipe)
    size = recipe.data.image_size
    pictures = torch.empty(BATCH, size, size, 3, dtype=torch.uint8, device="cuda")
    views = augment_from(recipe).apply_packed(pictures, torch.empty(13, BATCH, device="cuda"))
    for parameter in method.parameters():
        parameter.grad = torch.empty_like(parameter)
    mix = Mix(numbers(BATCH), torch.empty(BATCH, device="cuda")) if plan.cutmix else None
    index, candidates = numbers(BATCH), None
    if plan.negatives is not None:
        candidates = method.bank.candidates(index, plan.negatives, torch.Generator())
    # The fused optimizers have no fake form.
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9, foreach=True)
    terms = optimize(method, optimizer, index, views, plan, mix, candidates)
    assert all(term.is_cuda and term.shape == () for term in terms.values())
    assert GRADIENT_NORM in terms
    assert ("near" in terms) == (recipe.loss.near_weight > 0)
    assert method.bank.rows.device.type == ("cpu" if recipe.bank.device == "host" else "cuda")


@pytest.mark.parametrize("channels", [1, 3])
def test_features_stay_on_the_gpu(gpu: None, channels: int) -> None:
    with unset_fake_temporarily():
        encoder = create_encoder(
            "mobilenetv3-small", channels=channels, levels=3, components=16, pooling="statistics",
            descriptors=True,
        )  # fmt: skip
    on_gpu(encoder.eval())
    features = encoder(torch.empty(2, channels, 64, 64, device="cuda"))
    assert features.is_cuda
    assert features.shape == (2, 16)


def test_what_a_gpu_would_refuse_is_refused_here(gpu: None) -> None:
    there, here = torch.empty(2, device="cuda"), torch.empty(2)
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(DataDependentOutputException):
        there.sum().item()
