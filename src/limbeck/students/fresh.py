"""A student with random weights: the teacher's architecture in another shape, or another architecture."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from limbeck.checkpoints import Checkpoint, place, quiet
from limbeck.errors import InputError
from limbeck.recipe.schema import Student
from limbeck.recipe.sections import nearest
from limbeck.students.bilstm import BiLSTMConfig
from limbeck.students.ib_bert import IBBertConfig
from limbeck.students.layers import keep_settings
from limbeck.students.soft_tree import SoftTreeConfig, SoftTreeForSequenceClassification
from limbeck.students.word_level import owner_of_embeddings, reading
from limbeck.tasks import Task

# `embeddings`, ELECTRA's `embeddings_project` and Llama's `embed_tokens`; GPT-2's; ALBERT's projection.
_EMBEDDINGS = ("embed", "wte.", "wpe.", "encoder.embedding_hidden_mapping_in.")


def fresh_student(
    student: Student,
    teacher: Checkpoint | None,
    task: Task,
    owner: Checkpoint | None,
    texts: Sequence[str] = (),
) -> tuple[Checkpoint, dict[str, Any]]:
    """A model of the recipe's `student.shape`, and the record of how it was made.

    Args:
        student: `shape`, with `embeddings`, `tokenizer` and `vectors` where given.
        teacher: lends its configuration, or to another architecture what follows from its tokenizer and length.
        task: sets the head.
        owner: the model whose embeddings `student.embeddings` takes.
        texts: those whose words `student.vectors` are looked up for.

    Raises:
        InputError: unknown names, impossible sizes, nothing that says what architecture or vocabulary it should have.
    """
    shape = dict(student.shape or {})
    kind = shape.pop("model_type", None)
    own = _open_tokenizer(student) if student.tokenizer else None
    tokenizer = own or (teacher.tokenizer if teacher else None)
    if (tokenizer is None and student.vectors is None) or (teacher is None and kind is None):
        missing = "student.shape.model_type=ARCHITECTURE" if kind is None else "student.tokenizer=FOLDER"
        raise InputError(
            f"without a teacher a fresh shape needs student.shape.model_type and student.tokenizer; add {missing}"
        )
    vectors = None
    if kind == BiLSTMConfig.model_type:
        own, vectors = reading(student, tokenizer, owner, texts)
        shape, tokenizer = _with_vectors(shape, vectors, task), own
    assert tokenizer is not None
    if kind is not None:
        config = _other_architecture(kind, shape, own, teacher, task)
    else:
        assert teacher is not None
        config = _reshaped(teacher.model.config, shape, own)
    as_teachers = kind is not None and teacher is not None and "max_position_embeddings" not in shape
    model = _random_model(config, task, as_teachers)
    origin: dict[str, Any] = {"from": "random weights", "shape": student.shape}
    for name in ("tokenizer", "vectors"):
        if getattr(student, name) is not None:
            origin[name] = getattr(student, name)
    if vectors is not None:
        model.set_vectors(vectors)
        origin |= {"embeddings": ["embeddings.weight"]} if student.embeddings else {}
    elif student.embeddings:
        origin["embeddings"] = _take_embeddings(model, tokenizer, owner)
    elif isinstance(model, SoftTreeForSequenceClassification):
        raise InputError("a soft-tree reads the teacher's embeddings and trains none; give student.embeddings=true")
    return Checkpoint(model, tokenizer_for(model, tokenizer), "student"), origin


def _with_vectors(shape: dict[str, Any], vectors: torch.Tensor | None, task: Task) -> dict[str, Any]:
    """A BiLSTM's shape with what follows from its vectors, float [V, d], if any are given, and from the task."""
    if vectors is None:
        if shape.get("channels", 1) != 1:
            raise InputError(
                f"student.shape.channels is {shape['channels']}, a copy that stays of vectors that are given, and "
                "these are random; give student.embeddings=true or student.vectors=FILE, or leave channels out"
            )
        return {"channels": 1, **shape, "pair": task.pair}
    width = shape.get("embedding_size", vectors.shape[1])
    if width != vectors.shape[1]:
        raise InputError(
            f"student.shape.embedding_size is {width}, and the vectors that are given have {vectors.shape[1]} numbers; "
            "leave embedding_size out"
        )
    return {**shape, "embedding_size": width, "pair": task.pair}


def tokenizer_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy that gives no token types where the model reads none."""
    reads = inspect.signature(model.forward).parameters
    if "token_type_ids" in reads or "token_type_ids" not in tokenizer.model_input_names:
        return tokenizer
    fitting = copy.deepcopy(tokenizer)
    fitting.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return fitting


def _reshaped(
    theirs: PreTrainedConfig, shape: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedConfig:
    """The teacher's configuration with the shape's entries, and the vocabulary of another tokenizer."""
    config = copy.deepcopy(theirs)
    if tokenizer is not None:
        config.update(_vocabulary(config, tokenizer, len(tokenizer)))
    depth = shape.get("num_hidden_layers")
    if isinstance(depth, int) and depth < config.num_hidden_layers:
        keep_settings(config, range(depth))
    refuse_unknown(config, shape)
    for name, value in shape.items():
        setattr(config, name, value)
    vars(config).pop("true_hidden_size", None)  # MobileBERT works it out when its configuration is made
    return config


def _other_architecture(
    kind: str,
    shape: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    teacher: Checkpoint | None,
    task: Task,
) -> PreTrainedConfig:
    """An architecture's own configuration with what follows from tokenizer and teacher, and the shape's entries."""
    _, names, does = _kinds(task)
    known = [*names, *([] if task.kind == "causal-lm" else [IBBertConfig.model_type])]
    known += [SoftTreeConfig.model_type] if task.kind == "classification" else []
    if task.kind not in ("causal-lm", "masked-lm"):
        known.append(BiLSTMConfig.model_type)
    if kind not in known:
        raise InputError(f"student.shape: no architecture '{kind}' that {does}; {nearest(str(kind), known)}")
    default = AutoConfig.for_model(kind)
    refuse_unknown(default, shape)
    settings: dict[str, Any] = {}
    if teacher is not None:
        theirs = teacher.model.config
        settings |= _vocabulary(default, teacher.tokenizer, theirs.vocab_size)
        if hasattr(default, "max_position_embeddings") and hasattr(theirs, "max_position_embeddings"):
            settings["max_position_embeddings"] = theirs.max_position_embeddings - _unused_positions(teacher.model)
    if tokenizer is not None:
        settings |= _vocabulary(default, tokenizer, len(tokenizer))
    if kind == SoftTreeConfig.model_type and teacher is not None:
        settings["num_features"] = teacher.model.get_input_embeddings().weight.shape[1]
    try:
        return AutoConfig.for_model(kind, **(settings | shape))
    except Exception as error:  # each configuration checks its entries in its own way
        raise InputError(f"student.shape does not make a {kind}: {' '.join(str(error).split())}") from None


def _kinds(task: Task) -> tuple[Any, Any, str]:
    """The auto class of a task's models, the architectures that it knows, and what they do."""
    if task.kind == "masked-lm":
        return AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES, "fills in words"
    if task.kind == "causal-lm":
        return AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "writes text"
    return AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "classifies"


def _random_model(config: PreTrainedConfig, task: Task, add_unused: bool) -> PreTrainedModel:
    """A model of random weights; on demand with the rows of position embeddings added that no token reaches."""
    auto, _, _ = _kinds(task)
    config.update(task.config)
    try:
        config = type(config).from_dict(config.to_dict())  # what saving and opening will check
        if add_unused:
            with torch.device("meta"):
                unused = _unused_positions(auto.from_config(config))
            if unused:
                config.max_position_embeddings += max(unused, 2)  # `checkpoints.max_length` counts two
        return auto.from_config(config)
    except Exception as error:  # each architecture checks its own shapes in its own way
        raise InputError(f"student.shape does not make a {config.model_type}: {' '.join(str(error).split())}") from None


def refuse_unknown(config: PreTrainedConfig, shape: dict[str, Any]) -> None:
    """Refuse entries of `student.shape` that an architecture does not have."""
    for name in shape:
        if not hasattr(config, name):
            known = [key for key in [*config.to_dict(), *config.attribute_map] if not key.startswith("_")]
            raise InputError(f"student.shape: {config.model_type} has no '{name}'; {nearest(name, known)}")


def _vocabulary(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, Any]:
    """The entries that follow from a tokenizer; of the special tokens those that the architecture has a default for."""
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "bos", "eos")}
    ids["bos"] = ids["cls"] if ids["bos"] is None else ids["bos"]
    ids["eos"] = ids["sep"] if ids["eos"] is None else ids["eos"]
    keys = {f"{name}_token_id": value for name, value in ids.items()}
    known = {key: value for key, value in keys.items() if getattr(config, key, None) is not None}
    return {"vocab_size": size, "pad_token_id": tokenizer.pad_token_id} | known


def _unused_positions(model: PreTrainedModel) -> int:
    """Rows of the position embeddings that no token reaches: RoBERTa and its like count from the padding index on."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return int(module.padding_idx) + 1
    return 0


def _open_tokenizer(student: Student) -> PreTrainedTokenizerBase:
    name = str(student.tokenizer)
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                place(name), revision=student.revision, trust_remote_code=student.trust_remote_code
            )
    except Exception as error:  # a wrong name, no connection, broken files
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"student.tokenizer '{name}' is neither a tokenizer's folder nor one that the hub gave: {reason}"
        ) from None


@torch.no_grad()
def _take_embeddings(
    student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, teacher: Checkpoint | None
) -> list[str]:
    """Give the student the teacher's embedding modules, by name; the names of the tensors copied."""
    teacher = owner_of_embeddings(tokenizer, teacher)
    ours, theirs = _embeddings(student), _embeddings(teacher.model)
    kinds = f"the student's {student.config.model_type} and the teacher's {teacher.model.config.model_type}"
    for name, tensor in ours.items():
        if name not in theirs:
            raise InputError(
                f"student.embeddings: of {kinds} the first alone has {name}; leave student.embeddings out, or give "
                "the teacher's architecture"
            )
        if tensor.shape != theirs[name].shape:
            size, wanted = ("x".join(map(str, each.shape)) for each in (tensor, theirs[name]))
            raise InputError(
                f"student.embeddings: {name} is {size} in the student and {wanted} in the teacher; give student.shape "
                "the teacher's sizes there, or leave student.embeddings out"
            )
    for name, tensor in ours.items():
        tensor.copy_(theirs[name])
    return list(ours)


def _embeddings(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: each for name, each in model.base_model.state_dict().items() if name.startswith(_EMBEDDINGS)}
