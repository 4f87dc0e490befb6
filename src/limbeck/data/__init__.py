"""Reading, checking and splitting examples."""

from limbeck.data.chat import ROW, has_answers, is_chat, read_chat, read_chat_or_prompts, without_answers
from limbeck.data.columns import Columns, find_columns, label_column
from limbeck.data.corpus import read_corpus, split_corpus
from limbeck.data.labels import lump, resolve_task, task_about
from limbeck.data.reading import RawData, read, read_all, source_of
from limbeck.data.splitting import Splits, add_unlabelled, labelled_table, split

__all__ = [
    "ROW",
    "Columns",
    "RawData",
    "Splits",
    "add_unlabelled",
    "find_columns",
    "has_answers",
    "is_chat",
    "label_column",
    "labelled_table",
    "lump",
    "read",
    "read_all",
    "read_chat",
    "read_chat_or_prompts",
    "read_corpus",
    "resolve_task",
    "source_of",
    "split",
    "split_corpus",
    "task_about",
    "without_answers",
]
