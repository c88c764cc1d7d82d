"""tinyssl: pretrain a small image encoder on your own pictures, judge it, ship it.

Importing this loads no torch; each name below loads what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tinyssl.errors import Interrupted, JobError, TinysslError, UsageError

if TYPE_CHECKING:
    from tinyssl.checks import check
    from tinyssl.embedding import embed
    from tinyssl.evaluation import evaluate
    from tinyssl.export.benchmarking import benchmark
    from tinyssl.export.exporting import export
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
    "Interrupted",
    "JobError",
    "TinysslError",
    "UsageError",
    "__version__",
    "benchmark",
    "check",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "load",
    "predict",
    "pretrain",
    "report",
    "select",
]

_HOMES = {
    "EmbeddingTransformer": "transformer",
    "benchmark": "export.benchmarking",
    "check": "checks",
    "embed": "embedding",
    "evaluate": "evaluation",
    "export": "export",
    "finetune": "finetuning",
    "load": "model",
    "predict": "predicting",
    "pretrain": "pretraining",
    "report": "reporting.command",
    "select": "selection",
}


def __dir__() -> list[str]:
    """So that prompts and notebooks complete names that are not loaded yet."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tinyssl' has no attribute {name!r}")
    home = import_module(f"tinyssl.{_HOMES[name]}")
    return home if name == "export" else getattr(home, name)  # a package that can be called
