"""Workers to be watched or killed, in a module that a cluster's processes can import."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tinyssl.ray_embedding import Worker


class KilledOnce(Worker):
    """Dies in the middle of its second chunk, if none has died so far."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.written = 0

    def _write(self, *arguments: Any) -> None:
        died = Path(self.out).parent / "died"
        if self.written == 1 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super()._write(*arguments)
        self.written += 1


class KilledAlways(Worker):
    """Dies of the first chunk, whoever gets it."""

    def _write(self, name: str, *arguments: Any) -> None:
        if name == "part-000000.parquet":
            with (Path(self.out).parent / "deaths").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        super()._write(name, *arguments)


class WithoutTorch(Worker):
    """Refuses to write where torch was loaded."""

    def _write(self, *arguments: Any) -> None:
        assert "torch" not in sys.modules
        super()._write(*arguments)
