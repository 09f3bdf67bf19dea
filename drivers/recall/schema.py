"""The index's file: its tables, its settings, and whether a file is one of ours.

    state      stamp: the log sequence that the rest reflects; next: the next number; model
    audience   one row for all cubes of a namespace that the same callers may read
    document   one row per cube: doc, id, audience, version, name, passages, what its header says
    passage    the text; a cube's passages have the numbers doc .. doc + passages - 1
    words_N    FTS5 over the passages of audience N (its statistics are its own)
    model      one row per embedder whose vectors are here
    vector     of a passage: the whole, quantized (vectors.py)
    piece      of a passage: its sentences, quantized

Numbers of passages and audiences come from one counter and are never given twice, not even by the
file that takes this one's place under a running daemon: a larger one is newer, and a vector that
comes late meets no other text.
"""

import re
from typing import Any, Final

import apsw

from memosd.drivers.recall.query import TOKENIZER

__all__ = ["SCHEMA_VERSION", "fts_tables", "make_fts", "prepare"]

_APPLICATION_ID: Final = 0x6D656D78  # "memx"
SCHEMA_VERSION: Final = 2
_CACHE_KIB: Final = 16 << 10

_SETTINGS: Final = (
    # No other process reads the file; without this SQLite keeps a shared-memory file beside it.
    "PRAGMA locking_mode = exclusive",
    "PRAGMA journal_mode = wal",
    # A power cut may lose the last commits, never tear one: the kernel replays from the stamp.
    "PRAGMA synchronous = normal",
    "PRAGMA secure_delete = on",
    # Only scrub.py empties the log; see also prepare.
    "PRAGMA wal_autocheckpoint = 0",
    "PRAGMA temp_store = memory",
    f"PRAGMA cache_size = -{_CACHE_KIB}",
)
_SCHEMA: Final = f"""
BEGIN;
CREATE TABLE state (stamp INTEGER NOT NULL, next INTEGER NOT NULL, model INTEGER NOT NULL);
INSERT INTO state VALUES (0, 1, 0);
CREATE TABLE audience (
    audience INTEGER PRIMARY KEY, namespace INTEGER NOT NULL,
    uid INTEGER NOT NULL, gid INTEGER NOT NULL, mode INTEGER NOT NULL
);
CREATE TABLE document (
    doc INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, audience INTEGER NOT NULL,
    version INTEGER NOT NULL, name TEXT NOT NULL, passages INTEGER NOT NULL,
    lengths BLOB NOT NULL, type TEXT NOT NULL, semantic_type TEXT NOT NULL,
    producer TEXT NOT NULL, session TEXT NOT NULL, position INTEGER NOT NULL,
    event_time_ns INTEGER NOT NULL, valid_from_ns INTEGER NOT NULL,
    valid_to_ns INTEGER NOT NULL, written_ns INTEGER NOT NULL, priority INTEGER NOT NULL
);
CREATE INDEX document_name ON document (name);
CREATE TABLE passage (passage INTEGER PRIMARY KEY, producer TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE model (
    model INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, dimensions INTEGER NOT NULL
);
CREATE TABLE vector (passage INTEGER PRIMARY KEY, model INTEGER NOT NULL, whole BLOB NOT NULL);
CREATE TABLE piece (passage INTEGER PRIMARY KEY, pieces BLOB NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_TOKENIZE: Final = " ".join(f"'{word}'" if " " in word else word for word in TOKENIZER)
_WORDS: Final = re.compile(r"words_(\d+)")


def prepare(db: apsw.Connection) -> int:
    """Settings and, in a new file, tables; the stamp.

    Errors: apsw.CorruptError, NotADBError, SQLError where the file is none of ours.
    """
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    for setting in _SETTINGS:
        db.execute(setting)
    if db.execute("SELECT count(*) FROM sqlite_schema").get == 0:
        db.execute(_SCHEMA)
    marks = (db.pragma("application_id"), db.pragma("user_version"))
    if marks != (_APPLICATION_ID, SCHEMA_VERSION):
        raise apsw.NotADBError(f"another program's or version's file: {marks}")
    return int(db.execute("SELECT stamp FROM state").get)


def make_fts(db: apsw.Connection, audience: int) -> None:
    """The table of an audience's words."""
    words = f"words_{audience:d}"
    db.execute(
        f"CREATE VIRTUAL TABLE {words} USING fts5(producer, text,"
        f' content = passage, content_rowid = passage, tokenize = "{_TOKENIZE}")'
    )
    # Without it FTS5 only marks postings as deleted and drops them in some later merge.
    db.execute(f"INSERT INTO {words} ({words}, rank) VALUES ('secure-delete', 1)")


def fts_tables(db: apsw.Connection) -> set[int]:
    """The audiences that have a table of words."""
    tables: Any = db.execute("SELECT name FROM sqlite_schema WHERE sql LIKE 'CREATE VIRTUAL%'")
    matches = [_WORDS.fullmatch(name) for (name,) in tables]
    return {int(match[1]) for match in matches if match}
