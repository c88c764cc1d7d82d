"""Checks for optional dependencies before they are used."""

from importlib.util import find_spec

from tinyssl.errors import UsageError

EXPORT = ("onnx", "onnxscript", "onnxruntime")


def need(*modules: str, extra: str, what: str = "this") -> None:
    """Raises UsageError, saying what to install for `what`, where a module is missing."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise UsageError(
            f'{what} needs {", ".join(missing)}; install with: pip install "tinyssl[{extra}]"'
        )
