"""One step by every route that should only change its speed: the same numbers within tolerance."""

import gc
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tinyssl.augment import Augment
from tinyssl.bank import MemoryBank
from tinyssl.compiling import compiled, missing, settle_compile, settle_recording
from tinyssl.config import load_recipe
from tinyssl.encoder import Encoder
from tinyssl.errors import UsageError
from tinyssl.heads import projection_head
from tinyssl.loader import generator_for
from tinyssl.method import Method
from tinyssl.recording import Recorded, RecordedStep, recorded_views, uncollected
from tinyssl.train import Plan, parameter_groups, train_step

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
STEPS, SIDE, PICTURES = 3, 32, 24
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def plan(bf16: bool = False, **changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "pictures": PICTURES, "batch_size": 8, "epochs": 1, "lrs": np.full(STEPS, 0.1), "seed": 0,
        "negatives": None, "cutmix": 0.0, "cutmix_alpha": 0.5, "clip_norm": 1.0,
        "frozen_batch_norm": False, "bf16": bf16, "log_every": 1, "watch_every": 0,
        "save_every": 1,
    }  # fmt: skip
    return Plan(**settings | changes)


def backbone() -> nn.Module:
    """Small, because a compiler takes seconds for every layer."""
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(True), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip
    made.num_features = 8  # type: ignore[assignment]
    return made


def method() -> Method:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        zero, one = torch.zeros(3), torch.ones(3)
        encoder = Encoder(backbone(), name="small", stem="standard", mean=zero, std=one)
        head = projection_head(encoder.width, 16, 8)
    made = Method(
        encoder, head, MemoryBank(PICTURES, 8), temperature=0.2, distill_weight=0.5,
        distill_temperature=1.0, bank_rule="ema", bank_momentum=0.5, bank_lr=0.1,
        near_weight=0.5, near=(torch.arange(PICTURES)[:, None] + torch.tensor([1, 3])) % PICTURES,
    )  # fmt: skip
    made.bank.fill_random(torch.Generator().manual_seed(0))
    return made


def steps(
    change: Callable[[Method], None] = lambda made: None,
    *,
    fused: bool = True,
    channels_last: bool = True,
    device: torch.device = CPU,
    count: int = STEPS,
    record: bool = False,
    **changes: Any,
) -> Tensor:
    """Losses of some steps and the first weights after them, in one row."""
    made = method().to(device)
    if channels_last:
        made = made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    change(made)
    optimizer = torch.optim.SGD(parameter_groups(made, 1e-4), lr=0.1, momentum=0.9, fused=fused)
    generator = torch.Generator().manual_seed(1)
    course = plan(lrs=np.linspace(0.1, 0.05, count), **changes)
    plain = partial(train_step, made, optimizer, course)
    take_step = RecordedStep(made, optimizer, course) if record else plain
    losses = []
    for step in range(count):
        index = torch.randperm(PICTURES, generator=generator)[:8].to(device)
        views = torch.rand(8, 3, SIDE, SIDE, generator=generator).to(device)
        if channels_last:
            views = views.contiguous(memory_format=torch.channels_last)
        losses += take_step(index, views, step).values()
    if record:
        assert isinstance(take_step, RecordedStep)
        assert take_step.recorded.graph is not None
    weights = next(made.encoder.backbone.parameters()).detach().flatten()
    return torch.cat([torch.stack(losses), weights]).cpu()


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return steps(fused=False, channels_last=False)


def test_steps_change_something(plain: Tensor) -> None:
    weights = next(method().encoder.backbone.parameters()).detach().flatten()
    assert (plain[-len(weights) :] - weights).abs().max() > 1e-2


def test_fused_optimizer(plain: Tensor) -> None:
    torch.testing.assert_close(steps(channels_last=False), plain, rtol=1e-4, atol=1e-5)


def test_channels_last(plain: Tensor) -> None:
    torch.testing.assert_close(steps(fused=False), plain, rtol=1e-3, atol=1e-4)


def test_bf16(plain: Tensor) -> None:
    """8 bits of mantissa: close at first, and steps drift apart by what is rounded."""
    apart = (steps(bf16=True) - plain).abs()
    assert apart[:2].max() < 0.03
    assert apart[2 : 2 * STEPS].max() < 0.5


def compile_by(setting: str) -> Callable[[Method], None]:
    def change(made: Method) -> None:
        network = nn.Sequential(made.encoder, made.head)
        made.compute_by(*compiled(network, made.losses, setting))

    return change


@pytest.mark.skipif(missing(CPU) is not None, reason="nothing to compile with")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_compiled(plain: Tensor) -> None:
    def change(made: Method) -> None:
        before = set(made.state_dict())
        compile_by("on")(made)
        assert set(made.state_dict()) == before

    torch._dynamo.reset()
    torch.testing.assert_close(steps(change), plain, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


@needs_gpu
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("changes", [{}, {"negatives": 6}, {"cutmix": 0.5}], ids=str)
def test_routes_on_a_gpu(compiling: bool, record: bool, changes: dict[str, Any]) -> None:
    """TF32 in convolutions and bf16 round; a step that replays old draws would be far off.

    An H100 was 0.031 from the CPU's float32 in bf16.
    """
    torch._dynamo.reset()
    change = compile_by("on") if compiling else lambda made: None
    expected = steps(count=8, **changes)
    found = steps(change, device=CUDA, count=8, record=record, **changes)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=5e-3)
    half = steps(change, device=CUDA, count=8, record=record, bf16=True, **changes)
    assert (half - expected)[:2].abs().max() < 0.05
    torch._dynamo.reset()


@needs_gpu
def test_recorded_steps_are_those_that_are_not() -> None:
    """Beyond the warm-up the replays draw anew, and the rate moves."""
    plain, recorded = (steps(device=CUDA, count=8, record=record) for record in (False, True))
    torch.testing.assert_close(recorded, plain, rtol=1e-5, atol=1e-6)


@needs_gpu
def test_what_cannot_be_recorded_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    recorded = Recorded(lambda x: (x + float(x.sum()),))  # waits for the GPU
    for number in range(1, 7):
        (found,) = recorded(torch.full((2,), float(number), device=CUDA))
        assert found.tolist() == [3 * number, 3 * number]
    assert recorded.graph is None
    assert caplog.text.count("not recorded") == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@needs_gpu
def test_a_dead_recording_does_not_spoil_the_next() -> None:
    class Holder:
        def __init__(self) -> None:
            self.recorded = Recorded(self.compute)

        def compute(self, x: Tensor) -> tuple[Tensor]:
            gc.collect()
            return (x + 1,)

    for _ in range(3):
        recorded = Holder().recorded
        for number in range(6):
            assert recorded(torch.full((2,), number, device=CUDA))[0].tolist() == [number + 1] * 2
        assert recorded.graph is not None


def test_nothing_is_collected_while_a_step_is_recorded() -> None:
    class Knot:
        def __init__(self) -> None:
            self.itself = self

    before = weakref.ref(Knot())
    with pytest.raises(RuntimeError, match="failed"), uncollected():
        assert before() is None
        later = weakref.ref(Knot())
        kept = [[] for _ in range(10_000)]  # enough for the collector to be called
        assert later() is not None
        del kept
        raise RuntimeError("failed")
    assert gc.isenabled()


@needs_gpu
def test_recorded_views() -> None:
    pictures = torch.randint(0, 256, (8, 40, 40, 3), dtype=torch.uint8, device=CUDA)
    plain, recorded = Augment(SIDE, rotate90=0.5), Augment(SIDE, rotate90=0.5)
    recorded.compute_by(recorded_views)
    for step in range(6):
        expected, found = (made(pictures, generator_for(0, step, 1)) for made in (plain, recorded))
        torch.testing.assert_close(found, expected)


@needs_gpu
@pytest.mark.parametrize("sampled", [None, 6])
@pytest.mark.parametrize("cutmix", [0.0, 0.5])
def test_a_step_on_a_gpu_does_not_wait(sampled: int | None, cutmix: float) -> None:
    steps(device=CUDA, negatives=sampled, cutmix=cutmix)
    index, views = torch.arange(8).to(CUDA), torch.rand(8, 3, SIDE, SIDE).to(CUDA)
    made = method().to(CUDA)
    optimizer = torch.optim.SGD(parameter_groups(made, 1e-4), lr=0.1, momentum=0.9, fused=True)
    course = plan(negatives=sampled, cutmix=cutmix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that its debug mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(made, optimizer, course, index, views, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_auto_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle_compile("auto", CPU, 10**6) == (False, "auto: it pays on GPUs")
    monkeypatch.setattr("tinyssl.compiling.missing", lambda device: None)
    assert settle_compile("auto", CUDA, 100) == (False, "auto: 100 steps, worth it from 50,000")
    assert settle_compile("auto", CUDA, 90_000) == (
        True,
        "auto: 90,000 steps, worth it from 50,000",
    )
    assert settle_compile("off", CUDA, 9000) == (False, "run.compile=off")
    assert settle_compile("graphs", CUDA, 9000) == (False, "run.compile=graphs")
    assert settle_compile("on", CUDA, 1)[0]
    with pytest.raises(UsageError, match="graphs records CUDA graphs"):
        settle_compile("graphs", CPU, 1)
    monkeypatch.setattr("tinyssl.compiling.missing", lambda device: "triton")
    assert settle_compile("auto", CUDA, 9000) == (False, "auto: there is no triton")
    with pytest.raises(UsageError, match="no triton; take auto or off"):
        settle_compile("on", CUDA, 9000)


def test_what_compiling_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler without Python's headers, as of Debian without python3-dev, compiles nothing."""
    packages, compilers = ["triton"], ["gcc"]
    (tmp_path / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("tinyssl.compiling.find_spec", lambda name: name in packages or None)
    monkeypatch.setattr("shutil.which", lambda name: name in compilers)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "local"))
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: str(tmp_path))
    assert missing(CUDA) is None
    (tmp_path / "Python.h").unlink()
    assert missing(CUDA) == missing(CPU) == "Python.h (python3-dev)"
    compilers.clear()
    assert missing(CUDA) == missing(CPU) == "C++ compiler"
    packages.clear()
    assert (missing(CUDA), missing(CPU)) == ("triton", "C++ compiler")


def test_what_is_recorded() -> None:
    assert settle_recording("auto", CUDA, 1, "run")
    assert settle_recording("graphs", CUDA, 1, "run")
    assert not settle_recording("off", CUDA, 1, "run")
    assert not settle_recording("auto", CPU, 1, "run")
    assert not settle_recording("auto", CUDA, 2, "run")
    assert not settle_recording("auto", CUDA, 1, "host")
    for processes, bank in ((2, "run"), (1, "host")):
        with pytest.raises(UsageError, match=r"graphs records .* take auto or off"):
            settle_recording("graphs", CUDA, processes, bank)


@pytest.mark.parametrize("word", ["on", "off", "auto", "graphs"])
def test_words_that_yaml_takes_for_truth_values(word: str) -> None:
    recipe = load_recipe("mobilenetv3-small", [f"run.compile={word}"])
    assert recipe.run.compile == word
    assert f"compile: '{word}'" in recipe.to_yaml() or f"compile: {word}" in recipe.to_yaml()
