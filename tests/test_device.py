"""In which precision a run trains."""

from pathlib import Path

import pytest
import torch

from tests.killing import QUICK
from tests.making import make_pictures
from tinyssl import pretrain
from tinyssl.device import check_bf16, use_bf16
from tinyssl.errors import UsageError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "expected"), [("auto", False), ("fp32", False), ("bf16", True)]
)
def test_cpus_train_in_bf16_where_it_is_asked_for(precision: str, expected: bool) -> None:
    assert use_bf16(precision, CPU) is expected


def test_bf16_with_tiny_views_is_refused_on_a_cpu(tmp_path: Path) -> None:
    """Gradients of convolutions there hold whatever the memory held."""
    data = make_pictures(tmp_path / "data")
    with pytest.raises(UsageError, match=r"run\.precision=bf16 with augment\.view_size=16"):
        pretrain(data, out=tmp_path / "run", overrides=[*QUICK, "run.precision=bf16"])
    assert not (tmp_path / "run").exists()
    for precision, view_size in (("bf16", 32), ("fp32", 16), ("auto", 16)):
        check_bf16(precision, CPU, view_size)
