"""In which precision networks compute, on which device, and what is told of a full one."""

from pathlib import Path

import pytest
import torch

from tests.killing import QUICK
from tests.making import make_pictures, precision_of_convolutions
from tinyssl import pretrain
from tinyssl.device import check_bf16, full_float32, memory_told, pick_device, use_bf16
from tinyssl.errors import JobError, UsageError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "expected"), [("auto", False), ("fp32", False), ("bf16", True)]
)
def test_cpus_train_in_bf16_where_it_is_asked_for(precision: str, expected: bool) -> None:
    assert use_bf16(precision, CPU) is expected


@pytest.mark.parametrize("native", [False, True])
def test_auto_takes_bf16_where_a_gpu_does_not_emulate_it(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A T4 answers for what it emulates, unless it is asked for what it computes."""

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr("torch.cuda.is_bf16_supported", supported)
    assert use_bf16("auto", torch.device("cuda")) is native
    assert use_bf16("bf16", torch.device("cuda"))


def test_float32_in_full_is_for_a_while() -> None:
    before = precision_of_convolutions()
    for _ in range(2):
        with pytest.raises(JobError, match="failed"), full_float32():
            assert precision_of_convolutions() == "ieee"
            raise JobError("failed")
        assert precision_of_convolutions() == before


@pytest.mark.parametrize("first", [0, 1])
def test_the_last_of_several_at_a_time_puts_the_precision_back(first: int) -> None:
    before = precision_of_convolutions()
    both = [full_float32(), full_float32()]  # of two threads
    for one in both:
        one.__enter__()
    both[first].__exit__(None, None, None)
    assert precision_of_convolutions() == "ieee"
    both[1 - first].__exit__(None, None, None)
    assert precision_of_convolutions() == before


def test_a_full_gpu_is_told_in_a_line() -> None:
    told = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB."
    with pytest.raises(JobError) as caught, memory_told("lower optim.batch_size"):
        raise torch.OutOfMemoryError(told)
    line = "CUDA out of memory. Tried to allocate 2.50 GiB; lower optim.batch_size"
    assert str(caught.value) == line


def test_bf16_with_tiny_views_is_refused_on_a_cpu(tmp_path: Path) -> None:
    """Gradients of convolutions there hold whatever the memory held."""
    data = make_pictures(tmp_path / "data")
    with pytest.raises(UsageError, match=r"run\.precision=bf16 with augment\.view_size=16"):
        pretrain(data, out=tmp_path / "run", overrides=[*QUICK, "run.precision=bf16"])
    assert not (tmp_path / "run").exists()
    for precision, view_size in (("bf16", 32), ("fp32", 16), ("auto", 16)):
        check_bf16(precision, CPU, view_size)


@pytest.mark.parametrize("name", ["mps", "meta", "xpu:0", "gpu", ""])
def test_other_devices_are_refused_in_a_line(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        pick_device(name)
    assert str(caught.value) == f"device: got {name!r}, allowed: auto, cpu, cuda, cuda:N"


def test_a_run_leaves_torch_as_it_was(tmp_path: Path) -> None:
    data = make_pictures(tmp_path / "data")
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    pretrain(data, out=tmp_path / "run", overrides=QUICK)
    assert torch.equal(torch.rand(3), wanted)
    assert not torch.backends.cudnn.deterministic
