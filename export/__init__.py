"""Export of a run to a bundle that extracts features on a device without torch.

The package itself is callable as `tinyssl.export`, since importing one of its modules would
otherwise replace a function of that name.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from tinyssl.extras import EXPORT, need


class _Verb(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Calls `tinyssl.export.exporting.export` with the same arguments."""
        need(*EXPORT, extra="export")
        from .exporting import export

        return export(*arguments, **options)

    def __reduce__(self) -> Any:
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Verb
