"""Opening and naming checkpoints: safetensors only, a tokenizer that fits, a head that was trained."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as _IMAGES,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as _TEXTS,
)
from transformers.utils import logging as transformers_logging

from limbeck.errors import InputError
from limbeck.gguf import find_gguf, open_gguf
from limbeck.tasks.features import FeatureProcessor
from limbeck.tasks.task import Inputs, Task

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


class Checkpoint(NamedTuple):
    """A model with what it reads with: a tokenizer, an image processor or a `FeatureProcessor`."""

    model: PreTrainedModel
    processor: Any
    name: str

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor of a model that reads text."""
        tokenizer: PreTrainedTokenizerBase = self.processor
        return tokenizer

    @property
    def inputs(self) -> Inputs:
        """What the model reads."""
        if isinstance(self.processor, FeatureProcessor):
            return "features"
        return "image" if isinstance(self.processor, BaseImageProcessor) else "text"


class _Kind(NamedTuple):
    """How models of a kind are opened."""

    what: str
    model: Any
    processor: Any
    options: dict[str, Any]
    """The processor's."""


TEXTS = _Kind("a sequence classifier", AutoModelForSequenceClassification, AutoTokenizer, {})
# Of the two ways to read an image the one that needs no torchvision, so that answers are the same everywhere.
IMAGES = _Kind("an image classifier", AutoModelForImageClassification, AutoImageProcessor, {"backend": "pil"})
FEATURES = _Kind("a classifier of features", AutoModel, FeatureProcessor, {})
MASKED = _Kind("a masked language model", AutoModelForMaskedLM, AutoTokenizer, {})
CAUSAL = _Kind("a causal language model", AutoModelForCausalLM, AutoTokenizer, {})


def _kind_of(config: PreTrainedConfig) -> _Kind:
    """What a classifier reads: by the class that it was saved as, else by what its architecture is for."""
    if getattr(config, "reads", None) == "features":
        return FEATURES
    saved = " ".join(config.architectures or [])
    if "ForImageClassification" in saved:
        return IMAGES
    images_alone = config.model_type in _IMAGES and config.model_type not in _TEXTS
    return IMAGES if images_alone and "ForSequenceClassification" not in saved else TEXTS


@contextmanager
def quiet() -> Any:  # noqa: ANN401
    """No load reports and progress bars: we say ourselves what matters about a load."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def open_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """A checkpoint's configuration alone, which is enough to refuse most mistakes.

    Raises:
        InputError: not there, or holds pickles instead of safetensors.
    """
    folder = Path(place(name))
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise InputError(
                f"{name} holds {pickles[0]}, a pickle that could run code when opened; convert it to safetensors "
                "(model.save_pretrained in an environment you trust)"
            )
        raise InputError(f"{name} holds no model.safetensors; give a folder saved by save_pretrained")
    if not folder.is_dir() and (folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise InputError(f"no model folder '{name}'; check the path")
    try:
        return AutoConfig.from_pretrained(place(name), revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # a wrong name, no connection, a broken config or code that was not asked for
        raise InputError(
            f"'{name}' is neither a model folder nor a model that the hub gave: {_reason(error)}"
        ) from None


def open_classifier(
    name: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    head: dict[str, Any] | None = None,
) -> Checkpoint:
    """A classifier of texts, images or features with what it reads with, in float32.

    Args:
        name: a folder or a name on the hub.
        revision: the hub's commit, tag or branch.
        trust_remote_code: run code that the model brings along.
        head: configuration entries of a task (`Task.config`) when a missing head is to be made anew; without it,
            a checkpoint whose head was never trained is refused.

    Raises:
        InputError: see `open_config`; no tokenizer or other processor; weights that do not fit the configuration; an
            untrained head.
    """
    kind = _kind_of(open_config(name, revision, trust_remote_code))
    options = {"ignore_mismatched_sizes": head is not None, **(head or {})}
    checkpoint, missing = _open(name, kind, revision, trust_remote_code, **options)
    if head is None and missing:
        raise InputError(
            f"'{name}' was never trained to classify ({', '.join(missing[:3])} missing); train it first: "
            f"limbeck train student={name} data=... output=..."
        )
    return checkpoint


def open_language_model(
    name: str, revision: str | None = None, trust_remote_code: bool = False, head: bool = True
) -> Checkpoint:
    """A masked language model with its tokenizer, in float32.

    Args:
        name: a folder or a name on the hub.
        revision: the hub's commit, tag or branch.
        trust_remote_code: run code that the model brings along.
        head: whether its words will be read; if so, one whose head was never trained is refused.

    Raises:
        InputError: see `open_config`; no tokenizer; weights that do not fit the configuration; an untrained head.
    """
    checkpoint, missing = _open(name, MASKED, revision, trust_remote_code)
    if head and missing:
        raise InputError(
            f"'{name}' was never trained to fill in words ({', '.join(missing[:3])} missing); train it first: "
            f"limbeck train pretrain student={name} data=TEXT output=..."
        )
    return checkpoint


def open_causal(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Checkpoint:
    """A causal language model with its tokenizer, in float32; a tokenizer without a padding token pads with its end.

    Args:
        name: a folder, a name on the hub, a .gguf file, or a folder that holds one such file and no `config.json`.
        revision: the hub's commit, tag or branch.
        trust_remote_code: run code that the model brings along.

    Raises:
        InputError: see `open_config` and `open_gguf`; no tokenizer; weights that do not fit the configuration; an
            untrained head; a model that looks ahead, such as bert.
    """
    path = find_gguf(name)
    if path is not None:
        try:
            with quiet():
                checkpoint = Checkpoint(*open_gguf(path), name)
        except InputError:
            raise
        except Exception as error:  # an architecture that transformers does not read, broken tensors
            raise InputError(f"'{name}' does not open as a causal language model: {_reason(error)}") from None
    else:
        checkpoint = _open_causal_folder(name, revision, trust_remote_code)
    tokenizer = checkpoint.tokenizer
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return checkpoint


def _open_causal_folder(name: str, revision: str | None, trust_remote_code: bool) -> Checkpoint:
    checkpoint, missing = _open(name, CAUSAL, revision, trust_remote_code)
    if missing:
        raise InputError(
            f"'{name}' was never trained to write text ({', '.join(missing[:3])} missing); give the causal language "
            "model itself"
        )
    # By what it does: configurations say it each in their own way, and bert opens as a language model, too.
    ids = torch.tensor([[0, 1], [0, 2]], device=checkpoint.model.device)
    with torch.no_grad():
        one, other = checkpoint.model.eval()(input_ids=ids).logits[:, 0]
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-4):
        raise InputError(
            f"'{name}' is a {checkpoint.model.config.model_type} that looks ahead, so it cannot write text from left "
            "to right; give a causal language model such as llama or gpt2"
        )
    return checkpoint


def open_for(task: Task, name: str) -> Checkpoint:
    """A model that Limbeck saved, for the task that it was trained for."""
    openers = {"masked-lm": open_language_model, "causal-lm": open_causal}
    return openers.get(task.kind, open_classifier)(name)


def _open(
    name: str,
    kind: _Kind,
    revision: str | None,
    trust_remote_code: bool,
    **options: Any,  # noqa: ANN401
) -> tuple[Checkpoint, list[str]]:
    """The opened model with its processor, and the names of weights that its files lack."""
    open_config(name, revision, trust_remote_code)
    where, common = place(name), {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        with quiet():
            processor = kind.processor.from_pretrained(where, **common, **kind.options)
            model, loading = kind.model.from_pretrained(
                where, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **common, **options
            )
    except InputError:
        raise
    except Exception as error:  # missing or broken files; transformers raises a dozen kinds
        raise InputError(f"'{name}' does not open as {kind.what}: {_reason(error)}") from None
    return Checkpoint(model, processor, name), sorted(loading["missing_keys"])


def place(name: str) -> str:
    """The model's folder; of a run's folder the model that the run made; else the name as the hub knows it."""
    folder = Path(name).expanduser()
    made = [folder / part for part in ("student", "model") if (folder / part / "config.json").is_file()]
    if made and not (folder / "config.json").exists():
        return str(made[0])
    return str(folder) if folder.is_dir() else name


def label_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """The label names of a configuration in the order of the outputs."""
    return tuple(str(config.id2label[index]) for index in range(config.num_labels))


def max_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int:
    """Tokens kept of an example: what is wanted, else what model and tokenizer were made for.

    Raises:
        InputError: more is wanted than the model has positions for.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or 512
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= 2  # these count positions from the padding index on
    if wanted is not None and wanted > positions:
        raise InputError(f"task.max_length is {wanted}, but {model.config.model_type} reads at most {positions} tokens")
    return wanted or min(positions, int(tokenizer.model_max_length))


def ends_of(checkpoint: Checkpoint) -> list[int]:
    """The tokens that end what a causal language model writes: its generation settings' and its tokenizer's."""
    own = getattr(checkpoint.model.generation_config, "eos_token_id", None)
    return sorted({checkpoint.tokenizer.eos_token_id, *(own if isinstance(own, (list, tuple)) else [own])} - {None})


def check_tokenizer(checkpoint: Checkpoint, texts: Sequence[str]) -> None:
    """Refuse a tokenizer that does not belong to the model; of other processors nothing is asked.

    Raises:
        InputError: more tokens than embeddings, no padding token, or most of the text unknown.
    """
    if checkpoint.inputs != "text":
        return
    model, tokenizer, name = checkpoint
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer of '{name}' has {len(tokenizer)} tokens, the model embeds {rows}; they do not fit"
        )
    if tokenizer.pad_token_id is None:
        raise InputError(f"the tokenizer of '{name}' has no padding token; set tokenizer.pad_token and save it again")
    if tokenizer.unk_token_id is not None and texts:
        ids = [i for row in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for i in row]
        unknown = sum(i == tokenizer.unk_token_id for i in ids) / max(len(ids), 1)
        if unknown > 0.5:
            raise InputError(
                f"the tokenizer of '{name}' knows {1 - unknown:.0%} of the tokens of your text; it does not fit "
                "the data or was saved broken"
            )


def weights_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over the names, types, shapes and bytes of all weights and over the configuration's own entries."""
    digest = hashlib.sha256()
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in _IRRELEVANT}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


_IRRELEVANT = ("transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype", "limbeck")


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the highest id that the tokenizer knows; a model may have rows beyond, which pad its tables."""
    return int(max(tokenizer.get_vocab().values())) + 1


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the tokenizer's vocabulary and rules; not over truncation and padding, which callers set."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules.pop("truncation", None)
        rules.pop("padding", None)
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
