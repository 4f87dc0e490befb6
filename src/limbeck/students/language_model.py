"""A student's body under a masked language model's head, for stages on plain text."""

from __future__ import annotations

import copy

from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel

from limbeck.checkpoints import Checkpoint
from limbeck.errors import InputError


def language_model(student: PreTrainedModel, general: Checkpoint | None = None) -> PreTrainedModel:
    """The student's body, itself and no copy, under a head that fills in words.

    Args:
        student: any model of an architecture that has such a head; a masked language model is returned as it is.
        general: the language model that teaches. The head starts as its head where the sizes agree, else fresh.

    Raises:
        InputError: the architecture has no masked language model.
    """
    if type(student.config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise InputError(f"{student.config.model_type} has no masked language model; use an encoder such as bert")
    kind = MODEL_FOR_MASKED_LM_MAPPING[type(student.config)]
    if isinstance(student, kind):
        return student
    model: PreTrainedModel = kind(copy.deepcopy(student.config))
    body = f"{model.base_model_prefix}."
    setattr(model, model.base_model_prefix, student.base_model)
    model.tie_weights()
    tied = set(model.all_tied_weights_keys)  # these are the body's
    head = {n: p for n, p in model.state_dict().items() if not n.startswith(body) and n not in tied}
    theirs = general.model.state_dict() if general is not None else {}
    if all(name in theirs and theirs[name].shape == weight.shape for name, weight in head.items()):
        model.load_state_dict({name: theirs[name] for name in head}, strict=False)
    return model
