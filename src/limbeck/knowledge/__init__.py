"""What teachers said, kept on disk beside the examples, so that they are asked once."""

from limbeck.knowledge.labelling import describe_request, label_texts
from limbeck.knowledge.store import Store

__all__ = ["Store", "describe_request", "label_texts"]
