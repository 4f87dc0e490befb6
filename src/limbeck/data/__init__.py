"""Reading, checking and splitting examples."""

from limbeck.data.columns import Columns, find_columns, label_column
from limbeck.data.labels import resolve_task
from limbeck.data.reading import RawData, read, read_all
from limbeck.data.splitting import Splits, labelled_table, split

__all__ = [
    "Columns",
    "RawData",
    "Splits",
    "find_columns",
    "label_column",
    "labelled_table",
    "read",
    "read_all",
    "resolve_task",
    "split",
]
