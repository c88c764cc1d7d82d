"""tinyssl: pretrain a small image encoder on your own pictures, judge it, ship it.

Importing this loads no torch; each name below loads what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tinyssl.errors import JobError, TinysslError, UsageError

if TYPE_CHECKING:
    from tinyssl.embedding import embed
    from tinyssl.evaluation import evaluate
    from tinyssl.finetuning import finetune
    from tinyssl.model import load
    from tinyssl.predicting import predict
    from tinyssl.pretraining import pretrain
    from tinyssl.reporting.command import report
    from tinyssl.selection import select
    from tinyssl.transformer import EmbeddingTransformer

__version__ = "0.1.0"

__all__ = [
    "EmbeddingTransformer",
    "JobError",
    "TinysslError",
    "UsageError",
    "__version__",
    "embed",
    "evaluate",
    "finetune",
    "load",
    "predict",
    "pretrain",
    "report",
    "select",
]

_HOMES = {
    "EmbeddingTransformer": "transformer",
    "embed": "embedding",
    "evaluate": "evaluation",
    "finetune": "finetuning",
    "load": "model",
    "predict": "predicting",
    "pretrain": "pretraining",
    "report": "reporting.command",
    "select": "selection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tinyssl' has no attribute {name!r}")
    return getattr(import_module(f"tinyssl.{_HOMES[name]}"), name)
