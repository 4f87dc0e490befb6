"""The recipe's sections about data: where examples come from, and what is made of them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from limbeck.recipe.sections import Count, Fraction, Positive, Section, Share


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
    """Altered copies of the training texts, for the teacher to label, in one of two ways.

    With `model`, words are replaced by those that a language model proposes (Jiao et al. 2020, section 3.2). Without,
    words are masked or swapped for others of their part of speech, and texts are cut to a few words (Tang et al. 2019,
    section 3).
    """

    shorthand: ClassVar[str | None] = "model"
    model: str | None = None
    """The masked language model that proposes words in the place of single-piece ones: a folder or a hub name."""
    copies: Count = 20
    """Altered copies of each text; equal ones are dropped."""
    probability: Annotated[float, Field(gt=0, le=1)] = 0.4
    """With `model`: the chance of each word to be replaced."""
    candidates: Count = 15
    """With `model`: the words to draw from, likeliest or nearest first."""
    vectors: str | None = None
    """With `model`: word vectors, a text file in GloVe's format, for words of several pieces. The teacher's input
    embeddings when not given."""
    revision: str | None = None
    """The hub model's commit, tag or branch."""
    mask: Share = 0.0
    """The chance of each word to become the mask token, which teacher and student must share; 0.1 in the paper."""
    same_tag: Share = 0.0
    """The chance of each word to become another of its part of speech, as the training texts use them; 0.1 in the
    paper. English; needs `limbeck[tags]`."""
    ngram: Share = 0.0
    """The chance of each copy to be cut to 1 to 5 words in a row; 0.25 in the paper."""

    @model_validator(mode="after")
    def _one_way(self) -> Augmentation:
        alters = [name for name in ("mask", "same_tag", "ngram") if getattr(self, name)]
        if self.model is not None and alters:
            raise ValueError(
                f"model and {alters[0]} are two ways of altering texts; keep one (model=null or {alters[0]}=0 drops it)"
            )
        if self.model is not None:
            return self
        for name in ("probability", "candidates", "vectors", "revision"):
            if alters and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is about the words of a language model, and {alters[0]} is given in place of one; drop it"
                )
        if not alters:
            raise ValueError("nothing alters the texts; give model=MODEL, or some of mask, same_tag and ngram")
        if self.mask + self.same_tag > 1:
            raise ValueError(
                f"mask {self.mask:g} and same_tag {self.same_tag:g} are chances of the same word and come to more than "
                "1; lower one of them"
            )
        return self


class Synthetic(Section):
    """Made-up rows of a table (Bucila et al. 2006, section 3)."""

    shorthand: ClassVar[str | None] = "copies"
    copies: Count = 10
    """Made-up rows for each training row."""
    by: Literal["munge", "marginals", "naive_bayes"] = "munge"
    """`munge`: rows between nearest neighbours, which keep the dependences between columns; `marginals`: every column
    drawn by itself; `naive_bayes`: from a mixture of distributions of independent columns."""
    probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    """munge: the chance of each value to be changed (p)."""
    sharpness: Positive = 1.0
    """munge: the greater, the closer numbers stay to those in the table (s)."""


class Generation(Section):
    """A teacher's answers to prompts, learnt from in place of the examples' own (Kim and Rush 2016, section 3.2)."""

    shorthand: ClassVar[str | None] = "prompts"
    prompts: Source | None = None
    """The prompts: chat examples, whose last answers, if any, are not read; or plain text, a prompt a line. Those of
    the training examples when not given."""
    max_new_tokens: Count = 256
    """Tokens after which an answer is cut."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """What answers are sampled at; 0 for the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that make up this much of the probability."""
    beams: Count = 1
    """Search for the likeliest answer with so many beams; a local teacher alone can."""
    samples: Count = 1
    """Answers to each prompt."""
    cut: Literal["drop", "keep"] = "drop"
    """Whether answers cut at `max_new_tokens` are learnt from; from these a student learns to stop mid-sentence."""
    batch_size: Count = 16
    """Prompts answered together; of a server, requests under way at a time."""
    token_limit: Count | None = None
    """Ask a server no more once it has counted so many tokens, of prompts and answers. What it answered is kept, and
    the same command goes on for as many again."""

    @model_validator(mode="after")
    def _consistent(self) -> Generation:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"samples is {self.samples}, and at temperature 0 all would be equal; raise temperature")
        if self.temperature == 0 and self.top_p < 1:
            raise ValueError(f"top_p is {self.top_p:g}, and at temperature 0 nothing is sampled; raise temperature")
        if self.temperature > 0 and self.beams > 1:
            raise ValueError(
                f"beams is {self.beams}, which searches, and temperature {self.temperature:g} samples; set "
                "beams to 1 or temperature to 0"
            )
        return self


class Data(Section):
    """The labelled examples, how they are split, and the unlabelled transfer set."""

    shorthand: ClassVar[str | None] = "train"
    train: Source
    """The training examples."""
    validation: Source | Fraction | None = None
    """Examples, or the fraction of `train` held out, to choose checkpoints by. When not given, the source's own
    split, else a tenth; of plain text and conversations at most 1,000."""
    test: Source | Fraction | None = None
    """Examples, or the fraction of `train` held out, that the report is about. When not given, as
    `validation`."""
    unlabelled: Source | None = None
    """More text for the teacher to label; its label column, if any, is not read."""
    corpus: Source | None = None
    """Plain text for stages of `task: masked-lm`: a .txt file of lines, or a table with a text column."""
    augmentation: Augmentation | None = None
    """Altered copies of the training texts, for the teacher to label."""
    synthetic: Synthetic | None = None
    """Of tables: made-up rows for the teacher to label."""
    generation: Generation | None = None
    """causal-lm: learn from the teacher's own answers."""
    text: list[str] | str | None = None
    """The text column, or two for text pairs. Inferred from common names when not given."""
    image: str | None = None
    """The column of images. Inferred where there is one."""
    features: list[str] | None = None
    """The columns of numbers and names that make an example of a table. All but the label where all are numbers and
    nothing is given."""
    label: list[str] | str | None = None
    """The label column; several 0/1 columns for multi-label tables. Inferred from common names when not given."""
