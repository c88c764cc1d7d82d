"""Float16: what is too large or too small for it stays in float32."""

import numpy as np
import onnx
import pytest
import torch
from tinyssl.export.graph import Deployed, to_onnx
from tinyssl.export.half import to_half
from tinyssl.export.parity import compare
from tinyssl.export.variants import onnx_outputs, torch_outputs

from tinyssl.encoder import Encoder, create_encoder


@pytest.fixture
def encoder() -> Encoder:
    return create_encoder("resnet18", channels=1, seed=0).eval()


def pictures(dtype: type[np.integer]) -> np.ndarray:
    high = np.iinfo(dtype).max
    drawn = np.random.default_rng(0).integers(0, high, (6, 64, 64, 1), dtype, endpoint=True)
    return drawn // np.arange(1, 7, dtype=dtype)[:, None, None, None]


def halved(deployed: Deployed, shown: np.ndarray) -> onnx.ModelProto:
    return to_half(to_onnx(deployed, torch.from_numpy(shown[:2]), {}))


def test_features_whose_squares_are_beyond_float16(encoder: Encoder) -> None:
    """A length of some thousands: its square is above 65,504, and was infinite once."""
    last = encoder.get_submodule("backbone.layer4.1.bn2")
    with torch.no_grad():
        last.weight.fill_(3000.0)
    shown = pictures(np.uint8)
    raw = torch_outputs(Deployed(encoder, torch.uint8, unit=False), shown)["features"]
    assert np.linalg.norm(raw, axis=1).min() > 300
    deployed = Deployed(encoder, torch.uint8, unit=True)
    found = onnx_outputs(halved(deployed, shown).SerializeToString(), shown)["features"]
    parity = compare(torch_outputs(deployed, shown)["features"], found)
    assert parity.worst_cosine > 0.999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_pictures_of_16_bits(encoder: Encoder) -> None:
    """Their scale, 65,535, is beyond float16."""
    deployed, shown = Deployed(encoder, torch.uint16, unit=True), pictures(np.uint16)
    found = onnx_outputs(halved(deployed, shown).SerializeToString(), shown)["features"]
    assert compare(torch_outputs(deployed, shown)["features"], found).worst_cosine > 0.999


def test_only_the_encoder_is_in_float16(encoder: Encoder) -> None:
    model = halved(Deployed(encoder, torch.uint8, unit=True), pictures(np.uint8))
    kinds = {c.name: c.data_type for c in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert {kinds[node.input[1]] for node in convolutions} == {onnx.TensorProto.FLOAT16}
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == 3  # to float32, into the encoder, and out of it
    assert model.graph.output[0].name == "features"
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
