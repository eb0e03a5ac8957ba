"""Which ids were consumed lately: an SQLite file that the processes of one host share, for `delivery.unique_for`.

The first publication of an id takes a row with the digest of its content, in one statement, so that of two processes
only one can. A redelivered message with the same content is taken for that first one: to deliver twice is less of a
harm than to lose. Rows outlive processes, though not always a power cut (WAL without a flush for each row). All work
is done in a thread of its own. Rows whose time is over are removed, and the oldest ones where the file is full.
"""

import asyncio
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from mailq.ports.journal import DuplicatesError

NAME = "unique.sqlite"

MOST = 1024 * 1024 * 1024
"""Octets of the file, some ten million ids; beyond that the oldest ids are forgotten."""

PAGE = 4096

PATIENCE = 5.0
"""Seconds to wait for another process that writes just now."""

HOUSEKEEPING = 1.0
"""Seconds between two removals of rows whose time is over."""

BATCH = 5000
"""Rows that one removal takes at most."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS consumed (id BLOB PRIMARY KEY, content BLOB NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS consumed_at ON consumed (at);
"""
_TAKE = """
INSERT INTO consumed (id, content, at) VALUES (:id, :content, :now)
ON CONFLICT (id) DO UPDATE SET content = excluded.content, at = excluded.at WHERE consumed.at < :oldest
"""
_LOOK = "SELECT content, at FROM consumed WHERE id = :id"
_REMOVE = "DELETE FROM consumed WHERE id IN (SELECT id FROM consumed WHERE at < ? ORDER BY at LIMIT ?)"


class DuplicatesFile:
    """The ids that were consumed within the last `seconds`, in a directory on a local disk."""

    def __init__(self, directory: str, seconds: int, *, most: int = MOST) -> None:
        self._path = Path(directory, NAME)
        self._seconds = seconds
        self._most = most
        self._thread = ThreadPoolExecutor(1, "mailq-duplicates")
        self._file: sqlite3.Connection | None = None
        self._kept_house = 0.0

    async def first(self, identity: bytes, content: bytes, *, again: bool) -> datetime | None:
        """Return when another publication of the id was consumed, None if this one is the first; see `ports`."""
        call = partial(self._first, identity, content, time.time(), again=again)
        try:
            at = await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except (sqlite3.Error, OSError) as trouble:
            raise DuplicatesError(f"{self._path} cannot be used: {trouble}; set worker.journal_dir elsewhere") from None
        return None if at is None else datetime.fromtimestamp(at, UTC)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._thread.submit(self._file.close)
        self._thread.shutdown()

    def _first(self, identity: bytes, content: bytes, now: float, *, again: bool) -> float | None:
        file = self._file = self._file or self._opened()
        if now - self._kept_house > HOUSEKEEPING:
            self._kept_house = now
            file.execute(_REMOVE, (now - self._seconds, BATCH))
        values = {"id": identity, "content": content, "now": now, "oldest": now - self._seconds}
        try:
            taken = file.execute(_TAKE, values).rowcount
        except sqlite3.OperationalError as trouble:
            if trouble.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            file.execute(_REMOVE, (now, BATCH))
            taken = file.execute(_TAKE, values).rowcount
        if taken:
            return None
        row = file.execute(_LOOK, values).fetchone()
        if row is None or (again and row[0] == content):
            return None
        return float(row[1])

    def _opened(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        file = sqlite3.connect(self._path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = NORMAL")
            file.executescript(_SCHEMA)
            file.execute(f"PRAGMA max_page_count = {self._most // PAGE}")
        except sqlite3.Error:
            with suppress(sqlite3.Error):
                file.close()
            raise
        return file
