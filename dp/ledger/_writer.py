"""The id under which a process charges."""

import os
import secrets
from typing import final


__all__ = ("Writer",)


@final
class Writer:
    """The id under which one process charges; a forked child gets one of its own."""

    def __init__(self, key: str | None = None) -> None:
        self._key = secrets.token_hex(16) if key is None else key
        self._process = os.getpid()

    def key(self) -> str:
        # Parent and child both release from here on. Under one id, states that are
        # merged would count the longer of the two and not their sum.
        if self._process != os.getpid():
            self._key, self._process = secrets.token_hex(16), os.getpid()
        return self._key
