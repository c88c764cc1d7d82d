"""From a run to a bundle that extracts features on a device without torch.

The package itself is the function `tinyssl.export`: a name cannot be both else, once a module of
the package is imported.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from tinyssl.extras import EXPORT, need


class _Verb(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """What `tinyssl.export.exporting.export` does; takes and gives the same."""
        need(*EXPORT, extra="export")
        from .exporting import export

        return export(*arguments, **options)

    def __reduce__(self) -> Any:
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Verb
