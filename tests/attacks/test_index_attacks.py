"""Rows of index.db and footers that somebody planted: right sums, and sizes or types that cannot be."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct

import pytest
from storage_fixtures import SEQUENCE, TINY, Model, open_store, segments_in

from edgekv_storage import check_segment
from edgekv_storage.segments.format import PAGE, footer_bytes, footer_place
from edgekv_storage.store.index import _sum


def _filled(data_dir) -> Model:
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 3)
    return model


def _plant(data_dir, table: str, column: int, value: object) -> None:
    with contextlib.closing(sqlite3.connect(data_dir / "index.db")) as db:
        row = list(db.execute(f"SELECT * FROM {table}").fetchone()[:-1])
        row[column] = value
        db.execute(f"DELETE FROM {table}")
        marks = ",".join("?" * (len(row) + 1))
        db.execute(f"INSERT INTO {table} VALUES ({marks})", (*row, _sum(*row)))
        db.commit()


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("segments", 0, "notes.txt"),
        ("segments", 0, b"seg"),
        ("segments", 1, "text"),
        ("segments", 2, "text"),
        ("segments", 2, -1),
        ("segments", 5, 10**11),
        ("segments", 5, "many"),
        ("segments", 6, 99),
        ("records", 2, "x"),
        ("records", 4, 1.5),
        ("records", 5, "text"),
        ("records", 6, b"short"),
    ],
)
def test_a_row_that_cannot_be_true_costs_a_scan(data_dir, table, column, value):
    """Guards every start: a planted row with a right sum was an internal error, or kept `forget` busy for hours."""
    model = _filled(data_dir)
    _plant(data_dir, table, column, value)
    with open_store(data_dir) as store:
        assert model.read(store, model.find(store)) == (9, 0)
        assert "index" in "".join(store.take_notices())
        assert store.forget(SEQUENCE)


def test_a_footer_of_four_billion_records_is_not_read(data_dir):
    """Guards memory: a sparse file whose end claimed 2^32-1 records was read whole before its sum was looked at."""
    count = 2**32 - 1
    size = footer_bytes(count)
    tail = struct.pack("<QIIQ", 2 * PAGE, count, 0, 1) + bytes(8) + b"EDGEKV\0F"
    assert footer_place(tail, 2 * PAGE + size) is None
    model = _filled(data_dir)
    (path,) = segments_in(data_dir)
    os.truncate(path, 2 * PAGE + size)
    with path.open("r+b") as file:
        file.seek(-len(tail), os.SEEK_END)
        file.write(tail)
    with open_store(data_dir) as store:
        assert model.read(store, model.find(store)) == (9, 0)
    with path.open("r+b") as file:
        file.truncate(2 * PAGE + size)
        file.seek(-len(tail), os.SEEK_END)
        file.write(tail)
    assert check_segment(path)
