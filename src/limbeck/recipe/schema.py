"""The typed schema of a recipe. Importing it costs no torch, so that `limbeck schema` and `--help` answer at once."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from limbeck.recipe.sections import Section

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class About(Section):
    """What a packaged method is; printed by `limbeck methods`."""

    title: str
    """One line."""
    paper: str
    """Authors, year and address."""
    needs: str = ""
    """What the teacher and the data must offer: labels, unlabelled text, hidden states."""
    student: str = ""
    """What the student may differ in."""


class Task(Section):
    """What is predicted."""

    shorthand: ClassVar[str | None] = "kind"
    kind: Literal["classification", "multi-label", "regression", "masked-lm"] = "classification"
    """`classification` (one of two or more classes), `multi-label` (any of several), `regression` (a number), or
    `masked-lm` (the masked words of plain text)."""
    labels: list[str] | None = None
    """Class names in the order of the model's outputs. Taken from the teacher, else from the data, when not given."""
    max_length: Annotated[int, Field(ge=4)] | None = None
    """Tokens kept of an example. The models' own limit when not given; of plain text 128."""
    mask: Fraction = 0.15
    """masked-lm: the share of the tokens to predict: 80 % of them masked, 10 % random, 10 % kept. Drawn anew each time;
    nothing is masked in a stage whose terms do not read words."""
    whole_words: bool = False
    """masked-lm: mask all pieces of a word together."""
    packed: bool = False
    """masked-lm: fill every example to `max_length` with line after line, instead of one line an example."""


class Source(Section):
    """Where examples are read from."""

    shorthand: ClassVar[str | None] = "path"
    path: str
    """A csv, tsv, jsonl, parquet or txt file, a folder saved by `datasets`, or a dataset's name on the hub."""
    subset: str | None = None
    """The hub dataset's configuration, such as `sst2` of `nyu-mll/glue`."""
    split: str | None = None
    """The split to read where there are several. `train`, `validation` or `test` by use when not given."""
    revision: str | None = None
    """The hub dataset's commit, tag or branch."""


class Augmentation(Section):
    """Copies of the training texts with words replaced (Jiao et al. 2020, section 3.2, algorithm 1)."""

    shorthand: ClassVar[str | None] = "model"
    model: str
    """The masked language model that proposes words in the place of single-piece ones: a folder or a hub name."""
    copies: Count = 20
    """Altered copies of each text; equal ones are dropped."""
    probability: Annotated[float, Field(gt=0, le=1)] = 0.4
    """The chance of each word to be replaced."""
    candidates: Count = 15
    """The words to draw from, likeliest or nearest first."""
    vectors: str | None = None
    """Word vectors, a text file in GloVe's format, for words of several pieces. The teacher's input embeddings when
    not given."""
    revision: str | None = None
    """The hub model's commit, tag or branch."""


class Data(Section):
    """The labelled examples, how they are split, and the unlabelled transfer set."""

    shorthand: ClassVar[str | None] = "train"
    train: Source
    """The training examples."""
    validation: Source | Fraction | None = None
    """Examples, or the fraction of `train` held out, to choose checkpoints by. The source's own split or 0.1."""
    test: Source | Fraction | None = None
    """Examples, or the fraction of `train` held out, that the report is about. The source's own split or 0.1."""
    unlabelled: Source | None = None
    """More text for the teacher to label; its label column, if any, is not read."""
    corpus: Source | None = None
    """Plain text for stages of `task: masked-lm`: a .txt file of lines, or a table with a text column."""
    augmentation: Augmentation | None = None
    """Altered copies of the training texts, for the teacher to label."""
    text: list[str] | str | None = None
    """The text column, or two for text pairs. Inferred from common names when not given."""
    label: list[str] | str | None = None
    """The label column; several 0/1 columns for multi-label tables. Inferred from common names when not given."""


class TeacherModel(Section):
    """One model that teaches."""

    shorthand: ClassVar[str | None] = "model"
    model: str
    """A folder saved by `save_pretrained`, or a model's name on the hub. Safetensors only."""
    weight: Positive = 1.0
    """Its share among several teachers."""
    revision: str | None = None
    """The hub model's commit, tag or branch."""
    trust_remote_code: bool = False
    """Run the Python code that a hub model brings along. Off unless you ask for it here."""


class Teacher(Section):
    """Whatever knows: one model or several."""

    shorthand: ClassVar[str | None] = "models"
    models: Annotated[list[TeacherModel], Field(min_length=1)]
    """The models."""
    combine: Literal["probabilities", "logits"] = "probabilities"
    """How several are averaged: their probabilities, or their logits (a geometric mean of probabilities)."""
    general: TeacherModel | None = None
    """The language model that the teacher was fine-tuned from; it teaches the stages of `task: masked-lm`. The
    teacher's own body when not given."""
    features: list[int] = []
    """More layers whose [CLS] state is kept as knowledge, counted from 1; -1 is the last."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Examples per forward pass."""

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:  # noqa: ANN401
        """`teacher: DIR`, `teacher: [A, B]`, `teacher: {model: DIR}` and the full form mean what they look like."""
        if isinstance(value, str):
            return {"models": [value]}
        if isinstance(value, dict) and "model" in value and "models" not in value:
            own = {k: value[k] for k in value if k not in cls.model_fields}
            return {"models": [own], **{k: v for k, v in value.items() if k not in own}}
        return value

    @classmethod
    def expand(cls, value: Any) -> Any:  # noqa: ANN401
        """As the validator above, for `teacher=DIR teacher.combine=logits` on the command line."""
        return super().expand([value] if isinstance(value, str) else value)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Every form that the validator above takes, so that editors complete them."""
        full, several = super().__get_pydantic_json_schema__(core, handler)["anyOf"]
        model = TeacherModel.model_json_schema()["anyOf"][0]
        properties = model["properties"] | {k: v for k, v in full["properties"].items() if k != "models"}
        one = {**full, "properties": properties, "required": model["required"], "title": "OneTeacher"}
        return {"anyOf": [full, one, several, {"type": "string"}]}


Depth = list[int] | Count | Literal["half", "all"]
"""How many layers to keep, or which, counted from 0."""


class Student(Section):
    """The small model: cut from the teacher, another checkpoint (whole, or cut to `layers`), or a fresh shape."""

    shorthand: ClassVar[str | None] = "model"
    layers: Depth | None = None
    """How many of the teacher's layers to keep (a number, `half`, `all`), or which, counted from 0. Half of them when
    nothing is given."""
    pattern: Literal["alternate", "first", "last", "spaced"] = "spaced"
    """Which layers a number keeps; `limbeck methods layers` prints the table."""
    model: str | None = None
    """Another checkpoint to start from: a folder or a name on the hub."""
    shape: dict[str, Any] | None = None
    """A fresh, randomly initialised model: the teacher's configuration with these entries changed, or with
    `model_type`, that architecture's own."""
    architecture: Literal["distilbert"] | None = None
    """The class of a student cut from a BERT teacher: DistilBERT has no token types and no pooler."""
    embeddings: bool = False
    """Start a fresh shape with the teacher's embeddings; their sizes must agree."""
    tokenizer: str | None = None
    """Whose tokenizer a fresh shape reads with; the teacher's when not given."""
    revision: str | None = None
    """The hub model's commit, tag or branch."""
    trust_remote_code: bool = False
    """Run the Python code that a hub model brings along. Off unless you ask for it here."""

    @model_validator(mode="after")
    def _one_origin(self) -> Student:
        if self.shape is not None:
            given = [name for name in ("layers", "model") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{given[0]} and shape exclude each other; keep one ({given[0]}=null drops it)")
        return self


class HardLabels(Section):
    """Cross entropy with the true labels (multi-label: per label; regression: squared error)."""

    shorthand: ClassVar[str | None] = "weight"
    weight: Positive = 1.0
    """Its share of the loss."""


class SoftTargets(Section):
    """The teacher's outputs as targets, at a temperature."""

    shorthand: ClassVar[str | None] = "weight"
    weight: Positive = 1.0
    """Its share of the loss."""
    temperature: Positive = 2.0
    """Both models' logits are divided by it, and the loss is multiplied by its square. Regression has none."""
    positions: Literal["all", "masked"] = "all"
    """masked-lm: learn from the teacher's words at every token, or at the masked ones alone."""
    form: Literal["kl", "cross-entropy", "mse"] = "kl"
    """Forward KL divergence; the cross entropy that has the same gradient; or the squared error of the logits."""


LayerMap = Literal["uniform", "skip", "last"] | dict[int, int]
"""Which teacher layer each student layer learns from; see `limbeck.objectives.layer_maps`."""


class MaskedLM(Section):
    """Cross entropy with the masked words of plain text."""

    shorthand: ClassVar[str | None] = "weight"
    weight: Positive = 1.0
    """Its share of the loss."""


class Embedding(Section):
    """Squared error of what the first layer reads, token by token."""

    shorthand: ClassVar[str | None] = "weight"
    weight: Positive = 1.0
    """Its share of the loss."""


class Hidden(Section):
    """The states after mapped layers."""

    shorthand: ClassVar[str | None] = "weight"
    weight: Positive = 1.0
    """Its share of the loss."""
    form: Literal["mse", "cosine", "cls"] = "mse"
    """Squared error by token, through a learnt projection where widths differ, summed over layers; one minus the
    cosine by token; or the squared error of normalised [CLS] states."""
    layers: LayerMap = "uniform"
    """`uniform` (every n-th teacher layer), `skip` (the same without the last), `last` (the teacher's last ones but the
    very last), or `{student layer: teacher layer}`, counted from 1 or from the end."""


class Attention(Section):
    """The attention of mapped layers, head by head."""

    shorthand: ClassVar[str | None] = "weight"
    weight: Positive = 1.0
    """Its share of the loss."""
    form: Literal["mse", "kl"] = "mse"
    """Squared error of the scores before softmax, summed over layers; or KL divergence of the distributions."""
    layers: LayerMap = "uniform"
    """As of `hidden`."""


class Relations(Section):
    """KL divergence of scaled dot products among a layer's values, and among its queries and keys."""

    shorthand: ClassVar[str | None] = "weight"
    weight: Positive = 1.0
    """Its share of the loss."""
    of: Annotated[list[Literal["queries", "keys", "values"]], Field(min_length=1)] = ["values"]
    """Relations among which vectors; their mean."""
    heads: Count | None = None
    """Relation heads that the vectors are split into again. The teacher's attention heads when not given."""
    layers: LayerMap = {-1: -1}
    """As of `hidden`."""


class FeatureMap(Section):
    """MobileBERT's feature map transfer: states after mapped layers, normalised, and their mean and variance."""

    shorthand: ClassVar[str | None] = "weight"
    weight: Positive = 1.0
    """Its share of the loss."""
    normalised: Annotated[float, Field(ge=0)] = 100.0
    """The share of the squared error of the normalised states."""
    mean: Annotated[float, Field(ge=0)] = 5000.0
    """The share of the squared difference of their means."""
    variance: Annotated[float, Field(ge=0)] = 5.0
    """The share of the absolute difference of their variances."""
    layers: LayerMap = "uniform"
    """As of `hidden`."""


class Objectives(Section):
    """The loss: a weighted sum of these terms."""

    hard_labels: HardLabels | None = None
    """Learn from the true labels."""
    soft_targets: SoftTargets | None = None
    """Learn from the teacher's outputs."""
    masked_lm: MaskedLM | None = None
    """Learn to fill in the masked words of plain text."""
    embedding: Embedding | None = None
    """Learn from the teacher's embeddings."""
    hidden: Hidden | None = None
    """Learn from the teacher's hidden states."""
    attention: Attention | None = None
    """Learn from the teacher's attention."""
    relations: Relations | None = None
    """Learn from the relations among the teacher's queries, keys and values."""
    feature_map: FeatureMap | None = None
    """Learn from the teacher's hidden states as MobileBERT does."""

    @model_validator(mode="after")
    def _at_least_one(self) -> Objectives:
        if not self.names:
            raise ValueError(f"no objective; give at least one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def names(self) -> list[str]:
        """The terms that are there."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]

    @property
    def needs_teacher(self) -> bool:
        """Whether some term learns from a teacher."""
        return bool(set(self.names) - {"hard_labels", "masked_lm"})


class Training(Section):
    """How a stage is trained."""

    epochs: Positive = 3.0
    """Passes over the data."""
    learning_rate: Positive = 5e-5
    """The peak rate."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Examples per device and micro-step."""
    gradient_accumulation: Annotated[int, Field(ge=1)] = 1
    """Micro-steps per update. The gradient does not depend on how a global batch is split."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share of the steps over which the rate rises."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled decay; none on biases and norms."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are clipped to this norm; 0 for never."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 where the hardware computes in it, float16 on older GPUs, else float32."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop when the validation metric has not improved for so many epochs, and keep the best checkpoint. When not
    given, training runs to its end and keeps the last: by a few hundred examples the best is mostly the luckiest."""
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints, and between validations. One per epoch when not given."""
    layer_drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The chance of each layer to be skipped in a training step (LayerDrop)."""
    dropout: bool = True
    """The student's own dropout. Off where it must follow the teacher exactly."""
    report_to: list[str] = []
    """Trackers to report to, by their names in transformers: `tensorboard`, `wandb`, `mlflow`, ..."""


class Stage(Section):
    """One training phase."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Its name in folders, logs and plots."""
    task: Task | None = None
    """`masked-lm`: the stage is about the plain text of `data.corpus`. The recipe's own task when not given."""
    on: Literal["train", "transfer"] | None = None
    """The labelled examples alone, or those with the unlabelled and augmented ones. What the terms can use when not
    given."""
    keep: Depth | None = None
    """Cut the student to so many of its layers, or to these, before the stage."""
    pattern: Literal["alternate", "first", "last", "spaced"] = "alternate"
    """Which layers a number keeps; `limbeck methods layers` prints the table."""
    progressive: bool = False
    """Train one layer after the other, each for its share of the epochs with all else frozen; terms on layers look at
    that layer alone."""
    objectives: Objectives
    """The loss."""
    training: dict[str, Any] = {}
    """What differs from the recipe's `training` in this stage."""

    @property
    def on_text(self) -> bool:
        """Whether the stage is about plain text."""
        return self.task is not None and self.task.kind == "masked-lm"


class Evaluation(Section):
    """What the report measures."""

    metric: str | None = None
    """The metric that retention is about. accuracy, f1_micro (multi-label) or spearman (regression) when not given."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples behind every interval."""
    speed: bool = True
    """Measure latency and throughput, all models in turn."""


class Export(Section):
    """The forms that the student is shipped in besides its Hugging Face folder."""

    shorthand: ClassVar[str | None] = "formats"
    formats: list[Literal["onnx", "int8"]] = []
    """`onnx` (float32) and `int8` (dynamic quantisation by ONNX Runtime). Both are evaluated like the student."""


class Recipe(Section):
    """A whole run: from teacher to evaluated, exported student."""

    about: About | None = None
    """What the method is; only packaged recipes need it."""
    task: Task = Task()
    """What is predicted."""
    data: Data
    """The examples."""
    teacher: Teacher | None = None
    """Whatever knows. Only `limbeck train` goes without."""
    student: Student = Student()
    """The small model."""
    assistant: Student | None = None
    """A model between teacher and student: distilled by the masked-lm stages first, it then teaches them (MiniLM)."""
    stages: Annotated[list[Stage], Field(min_length=1)]
    """The training phases, in order."""
    training: Training = Training()
    """Settings that every stage starts from."""
    evaluation: Evaluation = Evaluation()
    """What is measured at the end, and how."""
    export: Export = Export()
    """The forms that the student is shipped in."""
    baseline: bool = True
    """Also train the same student on the hard labels alone, to show what the teacher bought."""
    output: str
    """The run's folder."""
    knowledge: str | None = None
    """The folder that keeps what teachers said; share it between runs. `OUTPUT/knowledge` when not given."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Fixes splits, initialisation and order."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for stage in self.stages:
            if self.task.kind == "masked-lm" and stage.task is None:
                stage.task = self.task
            try:
                self.training_of(stage)
            except ValidationError as error:
                from limbeck.recipe.loading import explain

                raise ValueError(f"stages.{stage.name}.training: {explain(error)}") from None
            self._check_stage(stage)
        if self.task.kind == "masked-lm":
            self._check_text_alone()
        self._refuse_idle()
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages share a name: {', '.join(names)}")
        for stage in self.stages:
            turns = [name for name in names if stage.progressive and re.fullmatch(f"{stage.name}-[0-9]+", name)]
            if turns:
                raise ValueError(
                    f"stage '{turns[0]}' is named like a turn of the progressive '{stage.name}'; rename it"
                )
        if self.teacher is None and self.student.model is None and self.student.shape is None:
            raise ValueError("without a teacher the student's start must be given; add student=MODEL")
        return self

    def _refuse_idle(self) -> None:
        """Refuse entries that no stage has a use for: a reader would believe that they did something."""
        on_text = [stage for stage in self.stages if stage.on_text]
        taught = [stage for stage in on_text if stage.objectives.needs_teacher]
        labels_alone = not any(stage.objectives.needs_teacher for stage in self.stages if not stage.on_text)
        idle = {
            "data.corpus": (self.data.corpus is not None and not on_text, "is about plain text"),
            "data.augmentation": (
                self.data.augmentation is not None and labels_alone,
                "learns from a teacher's answers",
            ),
            "teacher.general": (
                self.teacher is not None and self.teacher.general is not None and not taught,
                "learns from a teacher on plain text",
            ),
            "assistant": (self.assistant is not None and not taught, "learns from a teacher on plain text"),
        }
        for name, (is_idle, use) in idle.items():
            if is_idle:
                raise ValueError(f"{name} is given, but no stage {use}; drop it with {name}=null")
        if self.task.kind == "masked-lm" and self.teacher is not None and self.teacher.general is not None:
            raise ValueError("of task masked-lm the teacher itself is the language model; drop teacher.general")

    def _check_text_alone(self) -> None:
        """Refuse what a language model's run has no use for."""
        if self.teacher is not None and len(self.teacher.models) > 1:
            raise ValueError(f"task masked-lm takes one teacher, and {len(self.teacher.models)} are given; keep one")
        if self.export.formats:
            raise ValueError(
                f"export.formats {', '.join(self.export.formats)} are for classifiers, and the task is masked-lm; "
                "give export=[]"
            )
        for name in ("corpus", "unlabelled", "augmentation"):
            if getattr(self.data, name) is not None:
                raise ValueError(
                    f"data.{name} is for tasks with labels, and the task is masked-lm; give all text as data.train and "
                    f"leave data.{name} out"
                )

    def _check_stage(self, stage: Stage) -> None:
        """Refuse what cannot be: a term without its teacher or its text."""
        on_text = stage.on_text or self.task.kind == "masked-lm"
        for name in stage.objectives.names:
            if self.teacher is None and name not in ("hard_labels", "masked_lm"):
                raise ValueError(f"stage '{stage.name}' has {name}, which needs a teacher; give teacher=...")
            if on_text and name == "hard_labels":
                raise ValueError(f"stage '{stage.name}' is about plain text, which has no hard_labels; use masked_lm")
            if not on_text and name == "masked_lm":
                raise ValueError(f"stage '{stage.name}' has masked_lm, which is about plain text; add task: masked-lm")
        if stage.task is not None and not stage.on_text:
            raise ValueError(
                f"stage '{stage.name}' has task {stage.task.kind}; its own can only be masked-lm, so leave it out"
            )
        if stage.on_text and self.task.kind != "masked-lm" and self.data.corpus is None:
            raise ValueError(
                f"stage '{stage.name}' is about plain text; give data.corpus=FILE, or leave the stage out with "
                f"stages.{stage.name}=null"
            )
        given = stage.objectives
        if given.soft_targets is not None and given.soft_targets.positions == "masked" and not on_text:
            raise ValueError(f"stage '{stage.name}' has no masked words; leave soft_targets.positions out")
        self._check_layers(stage)

    def _check_layers(self, stage: Stage) -> None:
        """Refuse what layers that are left out, or trained one by one, cannot do."""
        given, training = stage.objectives, self.training_of(stage)
        if training.layer_drop and not training.dropout:
            raise ValueError(
                f"stage '{stage.name}' has layer_drop with dropout off, which turns both off; set one of them"
            )
        if training.layer_drop and (given.attention or given.relations):
            raise ValueError(
                f"stage '{stage.name}' has layer_drop, and the attention of a layer left out cannot be learnt from; "
                "set layer_drop to 0, or leave attention and relations out"
            )
        about_layers = ("hidden", "attention", "relations", "feature_map")
        others = [name for name in stage.objectives.names if name not in about_layers]
        if stage.progressive and others:
            raise ValueError(
                f"stage '{stage.name}' is progressive, and {others[0]} is not about one layer; "
                f"use {', '.join(about_layers)}, or set progressive to false"
            )

    def training_of(self, stage: Stage) -> Training:
        """The settings of one stage: the recipe's, with the stage's own on top."""
        return Training.model_validate(self.training.model_dump() | stage.training)
