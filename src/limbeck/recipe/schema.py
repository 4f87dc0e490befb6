"""The typed schema of a recipe. Importing it costs no torch, so that `limbeck schema` and `--help` answer at once."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from limbeck.recipe.sections import Section

Positive = Annotated[float, Field(gt=0)]
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
    kind: Literal["classification", "multi-label", "regression"] = "classification"
    """`classification` (one of two or more classes), `multi-label` (any of several), `regression` (a number)."""
    labels: list[str] | None = None
    """Class names in the order of the model's outputs. Taken from the teacher, else from the data, when not given."""
    max_length: Annotated[int, Field(ge=4)] | None = None
    """Tokens kept of an example. The models' own limit when not given."""


class Source(Section):
    """Where examples are read from."""

    shorthand: ClassVar[str | None] = "path"
    path: str
    """A csv, tsv, jsonl or parquet file, a folder saved by `datasets`, or a dataset's name on the hub."""
    subset: str | None = None
    """The hub dataset's configuration, such as `sst2` of `nyu-mll/glue`."""
    split: str | None = None
    """The split to read where there are several. `train`, `validation` or `test` by use when not given."""
    revision: str | None = None
    """The hub dataset's commit, tag or branch."""


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
    features: list[int] = []
    """Layers whose [CLS] state is kept as knowledge too, counted from 1; -1 is the last."""
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


class Student(Section):
    """The small model: cut from the teacher, another checkpoint, or a fresh shape. At most one of the three."""

    shorthand: ClassVar[str | None] = "model"
    layers: list[int] | Annotated[int, Field(ge=1)] | None = None
    """How many of the teacher's layers to keep, or which, counted from 0. Half of them when nothing is given."""
    pattern: Literal["alternate", "first", "last", "spaced"] = "spaced"
    """Which layers a number keeps; `limbeck methods layers` prints the table."""
    model: str | None = None
    """Another checkpoint to start from: a folder or a name on the hub."""
    shape: dict[str, Any] | None = None
    """A fresh, randomly initialised model: the teacher's configuration with these entries changed."""
    revision: str | None = None
    """The hub model's commit, tag or branch."""
    trust_remote_code: bool = False
    """Run the Python code that a hub model brings along. Off unless you ask for it here."""

    @model_validator(mode="after")
    def _one_origin(self) -> Student:
        given = [name for name in ("layers", "model", "shape") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; keep one")
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
    form: Literal["kl", "cross-entropy", "mse"] = "kl"
    """Forward KL divergence; the cross entropy that has the same gradient; or the squared error of the logits."""


class Objectives(Section):
    """The loss: a weighted sum of these terms."""

    hard_labels: HardLabels | None = None
    """Learn from the true labels."""
    soft_targets: SoftTargets | None = None
    """Learn from the teacher's outputs."""

    @model_validator(mode="after")
    def _at_least_one(self) -> Objectives:
        if not any(getattr(self, name) is not None for name in type(self).model_fields):
            raise ValueError(f"no objective; give at least one of {', '.join(type(self).model_fields)}")
        return self


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
    report_to: list[str] = []
    """Trackers to report to, by their names in transformers: `tensorboard`, `wandb`, `mlflow`, ..."""


class Stage(Section):
    """One training phase."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Its name in folders, logs and plots."""
    objectives: Objectives
    """The loss."""
    training: dict[str, Any] = {}
    """What differs from the recipe's `training` in this stage."""


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
            if self.teacher is None and stage.objectives.soft_targets is not None:
                raise ValueError(f"stage '{stage.name}' has soft_targets, which need a teacher; give teacher=...")
            try:
                self.training_of(stage)
            except ValidationError as error:
                from limbeck.recipe.loading import explain

                raise ValueError(f"stages.{stage.name}.training: {explain(error)}") from None
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages share a name: {', '.join(names)}")
        if self.teacher is None and self.student.model is None:
            raise ValueError("without a teacher the student's start must be given; add student=MODEL")
        return self

    def training_of(self, stage: Stage) -> Training:
        """The settings of one stage: the recipe's, with the stage's own on top."""
        return Training.model_validate(self.training.model_dump() | stage.training)
