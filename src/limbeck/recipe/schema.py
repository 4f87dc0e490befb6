"""The typed schema of a recipe. Importing it costs no torch, so that `limbeck schema` and `--help` answer at once."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from limbeck.recipe.checks import check_recipe
from limbeck.recipe.data import Data
from limbeck.recipe.sections import Count, Fraction, Positive, Section
from limbeck.recipe.teacher import Teacher, Words
from limbeck.recipe.terms import Objectives


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
    kind: Literal["classification", "multi-label", "regression", "masked-lm", "causal-lm"] = "classification"
    """`classification` (one of two or more classes), `multi-label` (any of several), `regression` (a number),
    `masked-lm` (the masked words of plain text), or `causal-lm` (how plain text goes on, or a conversation)."""
    labels: list[str] | None = None
    """Class names in the order of the model's outputs. Taken from the teacher, else from the data, when not given."""
    others: str | None = None
    """classification: the one label in the place of all that are not in `labels`. So a specialist is trained."""
    max_length: Annotated[int, Field(ge=4)] | None = None
    """Tokens kept of an example. The models' own limit when not given; of plain text 128, of a causal-lm 512."""
    mask: Fraction = 0.15
    """masked-lm: the share of the tokens to predict: 80 % of them masked, 10 % random, 10 % kept. Drawn anew each time;
    nothing is masked in a stage whose terms do not read words."""
    whole_words: bool = False
    """masked-lm: mask all pieces of a word together."""
    packed: bool | None = None
    """Plain text: fill every example to `max_length` with line after line, instead of one line an example. When not
    given, a causal-lm does and a masked-lm does not."""


Depth = list[int] | Count | Literal["half", "all"]
"""How many layers to keep, or which, counted from 0."""


class Width(Section):
    """The widths of a student cut from a model; what is not given stays.

    Which units are kept is measured on the training text: those that are active most.
    """

    hidden_size: Count | None = None
    """Channels of the hidden states."""
    intermediate_size: Count | None = None
    """Neurons of each feed-forward network."""
    num_attention_heads: Count | None = None
    """Heads of each layer. They are cut together with the key and value head that they share."""
    num_key_value_heads: Count | None = None
    """Heads of keys and values of each layer."""
    head_dim: Count | None = None
    """Channels of a head; they cannot be cut, so this can only be the teacher's."""


class Student(Section):
    """The small model: cut from the teacher, another checkpoint (whole, or cut to `layers`), or a fresh shape."""

    shorthand: ClassVar[str | None] = "model"
    layers: Depth | None = None
    """How many of the teacher's layers to keep (a number, `half`, `all`), or which, counted from 0. Half of them when
    nothing is given."""
    pattern: Literal["alternate", "first", "last", "spaced", "influence"] | None = None
    """Which layers a number keeps; `limbeck methods layers` prints the table. `influence` keeps those that turn the
    hidden states of some of the training text most, in their order. When not given, of a causal-lm `influence`, else
    `spaced`."""
    width: Width | None = None
    """Narrower hidden states, feed-forward networks and fewer heads. All layers stay unless `layers` says so."""
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
    vectors: str | None = None
    """Word vectors that a bilstm starts with, a text file in GloVe's format; its tokens are then words."""
    revision: str | None = None
    """The hub model's commit, tag or branch."""
    trust_remote_code: bool = False
    """Run the Python code that a hub model brings along. Off unless you ask for it here."""

    def pattern_of(self, task: str) -> str:
        """The pattern that a student for this kind of task is cut by."""
        return self.pattern or ("influence" if task == "causal-lm" else "spaced")

    @model_validator(mode="after")
    def _one_origin(self) -> Student:
        if self.shape is not None:
            given = [name for name in ("layers", "width", "model") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{given[0]} and shape exclude each other; keep one ({given[0]}=null drops it)")
        if self.vectors is not None:
            if (self.shape or {}).get("model_type") != "bilstm":
                raise ValueError("vectors are what a bilstm starts with; give shape.model_type=bilstm or drop them")
            if self.embeddings:
                raise ValueError("embeddings and vectors exclude each other; keep one (embeddings=false drops it)")
            if self.tokenizer is not None:
                raise ValueError("tokenizer and vectors exclude each other; keep one (tokenizer=null drops it)")
        return self


class ImageChanges(Section):
    """Random changes of the training images; needs the `vision` extra. A teacher is shown the same changed images."""

    flip: bool = False
    """Mirror half of them."""
    crop: Annotated[int, Field(ge=0)] = 0
    """Move them by up to so many pixels, edges filled with black."""
    resized_crop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Cut out a part of at least this share of the area and resize it. 0 for never."""
    randaugment: Annotated[int, Field(ge=0, le=30)] = 0
    """Two random changes of place or colour of this strength (RandAugment)."""
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The chance of a random box to be erased."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Mix pairs of images; the Beta distribution's parameter."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Put a box of one image into another; likewise. With both, one of them by a coin's throw."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """How much of each label is spread evenly over the classes."""


class Training(Section):
    """How a stage is trained."""

    epochs: Positive = 3.0
    """Passes over the data."""
    learning_rate: Positive = 5e-5
    """The peak rate."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Examples per device and micro-step. A run may go on with the same global batch split otherwise."""
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
    """Stop when the validation metric has not improved for so many validations, and keep the best checkpoint. A stage
    on layers alone has no such metric and runs to its end. When not given, every stage does, and keeps the last: by a
    few hundred examples the best is mostly the luckiest."""
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints, and between validations. One per epoch when not given."""
    layer_drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The chance of each layer to be skipped in a training step (LayerDrop)."""
    dropout: bool = True
    """The student's own dropout. Off where it must follow the teacher exactly."""
    gradient_checkpointing: bool = False
    """Keep what each layer reads alone for the backward pass and compute the rest of it once more there: less memory,
    longer steps, the same gradient."""
    images: ImageChanges | None = None
    """Of tasks about images: change the training images at random."""
    report_to: list[str] = []
    """Trackers to report to, by their names in transformers: `tensorboard`, `wandb`, `mlflow`, ..."""


class OnPolicy(Section):
    """Learning from the student's own answers."""

    shorthand: ClassVar[str | None] = "share"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the updates that are about the student's own answers to the prompts, not the data's."""
    max_new_tokens: Count = 128
    """The longest answer."""
    temperature: Positive = 1.0
    """At which they are drawn."""
    teacher_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """How much of the teacher's distribution is mixed into the one that they are drawn from (MiniLLM)."""


class Stage(Section):
    """One training phase."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Its name in folders, logs and plots."""
    task: Task | None = None
    """`masked-lm`: the stage is about the plain text of `data.corpus`. The recipe's own task when not given."""
    on: Literal["train", "transfer"] | None = None
    """The labelled examples alone, or those with the unlabelled and augmented ones; of a causal-lm the data's answers,
    or the teacher's. What the terms can use, or the teacher's, when not given."""
    keep: Depth | None = None
    """Cut the student to so many of its layers, or to these, before the stage."""
    pattern: Literal["alternate", "first", "last", "spaced"] = "alternate"
    """Which layers a number keeps; `limbeck methods layers` prints the table."""
    progressive: bool = False
    """Train one layer after the other, each for its share of the epochs with all else frozen; terms on layers look at
    that layer alone."""
    objectives: Objectives
    """The loss."""
    on_policy: OnPolicy | None = None
    """causal-lm: learn from the student's own answers, too."""
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
    teacher: bool = True
    """Measure the teacher, too; behind an API that costs a query for each test example."""
    speed: bool = True
    """Measure latency and throughput, of a causal-lm the tokens per second and memory of generating, all models in
    turn."""
    examples: Count = 500
    """causal-lm: the examples of the test split that are measured, drawn at random where there are more; half as many
    watch the training."""


class Export(Section):
    """The forms that the student is shipped in besides its Hugging Face folder."""

    shorthand: ClassVar[str | None] = "formats"
    formats: list[Literal["onnx", "int8", "gguf", "gguf-q8"]] = []
    """`onnx` (float32) and `int8` (dynamic quantisation by ONNX Runtime), both evaluated like the student. Of language
    models that write: `gguf` (float16) and `gguf-q8` (8 bits), for llama.cpp."""


class Labelling(Section):
    """Who asks the teacher."""

    shorthand: ClassVar[str | None] = "engine"
    engine: Literal["here", "ray"] = "here"
    """`here`: this run's processes. `ray`: workers on a Ray cluster (extra `ray`), each with the teacher loaded once;
    the cluster is the one that the variable RAY_ADDRESS names, or else this machine."""
    workers: Count | None = None
    """Of `ray`. One for each GPU when not given; where there are none one for each machine, with all its cores."""


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
    rules: str | None = None
    """A rules file about the labels, or of a causal-lm about the answers: what the teacher says is projected onto it
    before it is kept and learnt from, and the report shows models without the rules and held to them."""
    evaluation: Evaluation = Evaluation()
    """What is measured at the end, and how."""
    export: Export = Export()
    """The forms that the student is shipped in."""
    baseline: bool = True
    """Also train the same student on the hard labels alone, to show what the teacher bought."""
    profile: bool = False
    """Profile some updates of each stage: where their time goes, and how far they are above what training the student
    alone takes; to `OUTPUT/logs`."""
    output: str
    """The run's folder."""
    knowledge: str | None = None
    """The folder that keeps what teachers said; share it between runs. `OUTPUT/knowledge` when not given. Of a URL
    that fsspec opens, such as s3://bucket/folder, what is there comes to `OUTPUT/knowledge`, and what is made goes
    there, too."""
    labelling: Labelling = Labelling()
    """Who asks the teacher."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Fixes splits, initialisation and order."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.task.kind == "masked-lm":
            for stage in self.stages:
                stage.task = stage.task or self.task
        if self.task.kind == "causal-lm" and self.teacher is not None and self.teacher.words is None:
            own = any(stage.on_policy is not None for stage in self.stages)
            self.teacher.words = Words(keep="nothing" if own else "head_and_tail")
        check_recipe(self)
        return self

    def training_of(self, stage: Stage) -> Training:
        """The settings of one stage: the recipe's, with the stage's own on top."""
        return Training.model_validate(self.training.model_dump() | stage.training)
