"""What teachers said, kept on disk beside the examples, so that they are asked once."""

from limbeck.knowledge.labelling import describe_request, label_texts
from limbeck.knowledge.store import Joined, Store
from limbeck.knowledge.words import WordStore, label_words, words_format

__all__ = ["Joined", "Store", "WordStore", "describe_request", "label_texts", "label_words", "words_format"]
