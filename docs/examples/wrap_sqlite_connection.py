"""A connection to SQLite that notes every statement; all else is the connection's."""

import sqlite3
from typing import Any

from forwarding import Forwarded, Wrapper


class Noted(Wrapper[sqlite3.Connection], forward=sqlite3.Connection):
    """Note what is executed.

    ``with noted as connection`` binds the wrapper; without ``returns="wrapper"`` it
    would bind the bare connection, whose statements nobody notes.
    """

    __enter__ = Forwarded(returns="wrapper")

    def __init__(self, connection: sqlite3.Connection, /) -> None:
        super().__init__(connection)
        self.statements: list[str] = []

    def execute(self, sql: str, /, *parameters: Any) -> sqlite3.Cursor:
        """Execute one statement."""
        self.statements.append(sql)
        return self.__wrapped__.execute(sql, *parameters)
