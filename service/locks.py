"""[edge: sqlalchemy] What one process at a time may be: by advisory locks of PostgreSQL, gone with who held them."""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress

import sqlalchemy as sa


class Held:
    """A lock on a connection of its own, taken again after the database was away. Thread-safe.

    Parameters
    ----------
    word
        What it is about: the same word, the same lock.
    """

    def __init__(self, engine: sa.Engine, word: str) -> None:
        self._engine, self._key = engine, int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], signed=True)
        self._lock = threading.Lock()
        self._connection: sa.Connection | None = None
        self._has = False

    def hold(self) -> bool:
        """Whether we have it now; asks the database, and takes it if nobody has it. False while that is away."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                if self._has:
                    self._connection.execute(sa.text("SELECT 1"))
                else:
                    taken = self._connection.scalar(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": self._key})
                    self._has = bool(taken)
            except sa.exc.DBAPIError:
                self._drop()
            return self._has

    def release(self) -> None:
        """Give it back."""
        with self._lock:
            if self._has and self._connection is not None:
                with suppress(sa.exc.DBAPIError):  # at once; the server notices a closed connection a moment later
                    self._connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": self._key})
            self._drop()

    def _drop(self) -> None:
        connection, self._connection, self._has = self._connection, None, False
        if connection is not None:
            with suppress(sa.exc.DBAPIError):
                connection.invalidate()  # closed, not given back to the pool: the lock goes with it
                connection.close()
