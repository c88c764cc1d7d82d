"""In which precision `auto` trains: bf16 where it is known to be faster."""

import pytest
import torch

from tinyssl.device import use_bf16
from tinyssl.encoder import create_encoder

CPU = torch.device("cpu")


def with_bf16(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has}, raising=False)


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("stem", ["standard", "small"])
def test_a_cpu_that_has_bf16_trains_resnets_in_it(
    monkeypatch: pytest.MonkeyPatch, has: bool, stem: str
) -> None:
    with_bf16(monkeypatch, has)
    assert use_bf16("auto", CPU, create_encoder("resnet18", stem=stem, channels=1)) is has


@pytest.mark.parametrize("name", ["mobilenetv2", "mobilenetv3-small", "efficientnet-lite0"])
def test_depthwise_convolutions_stay_in_float32_on_cpus(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with_bf16(monkeypatch, True)
    assert not use_bf16("auto", CPU, create_encoder(name))


def test_a_torch_that_does_not_tell_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not use_bf16("auto", CPU, create_encoder("resnet18"))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3-small"])
def test_precision_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    encoder = create_encoder(name)
    for has in (True, False):
        with_bf16(monkeypatch, has)
        assert use_bf16("bf16", CPU, encoder)
        assert not use_bf16("fp32", CPU, encoder)
