"""An encoder as one ExecuTorch program, for phones and small boards, and how to run it here.

s = picture size, c = channels, n = pictures.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyssl.errors import JobError, UsageError, first_line
from tinyssl.extras import need

from .graph import Deployed

MODEL = "encoder.pte"


def need_executorch() -> None:
    """Raises UsageError, which says what to install, if ExecuTorch is missing."""
    need("executorch", extra="mobile", what="target mobile")


def to_pte(deployed: Deployed, example: Tensor) -> bytes:
    """The encoder, weights included, as an ExecuTorch program whose layers run in XNNPACK.

    It maps (1, s, s, c) pictures to the outputs of `deployed`, with one row each. A dynamic batch
    works too, but was a sixth slower for one picture and reserves memory for the largest batch.

    Args:
        deployed: on the CPU.
        example: (n, s, s, c) pictures; the first one is used for tracing.

    Raises:
        UsageError: ExecuTorch is not installed, or the pictures are not uint8.
        JobError: ExecuTorch does not support a layer; contains its reason.
    """
    need_executorch()
    if example.dtype != torch.uint8:
        raise UsageError(f"target mobile takes uint8 pictures, this encoder {example.dtype}")
    with _quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            program = torch.export.export(deployed.eval(), (example[:1],))
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return bytes(lowered.to_executorch().buffer)
        except Exception as error:  # the compiler raises errors of many kinds
            told = f"ExecuTorch cannot take {deployed.encoder.name}: {first_line(error)}"
            raise JobError(told) from error


def pte_outputs(model: bytes, pictures: NDArray[Any]) -> list[NDArray[np.float32]]:
    """Features (n, width) of pictures (n, s, s, c) uint8, by ExecuTorch's own runtime.

    With a classifier also probabilities (n, k).

    Raises:
        UsageError: ExecuTorch is not installed.
        JobError: not an ExecuTorch program, or one for pictures of another shape.
    """
    need_executorch()
    with _quiet():
        from executorch.runtime import Runtime

        try:
            method = Runtime.get().load_program(model).load_method("forward")
            assert method is not None
            # Copied, since the next call may overwrite the memory.
            rows = [
                [output.numpy().copy() for output in method.execute([torch.from_numpy(one[None])])]
                for one in pictures
            ]
        except RuntimeError as error:
            raise JobError(f"ExecuTorch cannot run the model: {first_line(error)}") from error
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences ExecuTorch's notes on processors and imports, in C++ too; errors are raised."""
    logging_before, handlers = logging.root.manager.disable, logging.root.handlers[:]
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), _no_stderr():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging_before)
        logging.root.handlers[:] = handlers  # one that its notes add would tell our lines twice


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
