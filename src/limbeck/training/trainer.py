"""The Hugging Face Trainer with Limbeck's loss: weighted terms, one denominator per global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from itertools import islice
from operator import or_
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs
from datasets import Dataset
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Trainer

from limbeck import hardware
from limbeck.anatomy import Capture, StatesAt, WordsAt
from limbeck.checkpoints import vocabulary_size
from limbeck.objectives import Balance, PolicyGradient, Term
from limbeck.objectives.vocabulary import over_vocabulary, word_scores
from limbeck.sharding import sharded
from limbeck.signals import Signals, SignalSource, Wanted, WordSource
from limbeck.tasks.causal_lm import causal_inputs
from limbeck.tasks.text import UNUSED, Batch, model_inputs
from limbeck.training.on_policy import OwnAnswers, advantages
from limbeck.training.order import EvenParts, LengthGroupedByEpoch, longest_first, unused
from limbeck.training.profiling import Profile, region


class ExchangeInBfloat16(DistributedDataParallelKwargs):
    """Has processes on CPUs tell each other their gradients in bfloat16, in which autocast computes.

    Who sends takes a core from who computes. A product's gradient is in bfloat16 anyway; that of embeddings and norms,
    and a sum over micro-batches, is rounded to it once. PyTorch keeps its own hook by that name from CPUs.
    """

    def register_comm_hook(self, model: DistributedDataParallel) -> None:
        """Called by Accelerate, of what it wrapped."""
        model.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch's tensors but for `row`, by which what is kept is read: from a device that would wait for its work."""
    return {name: each if name == "row" else hardware.send(each, device) for name, each in batch.items()}


class DistillationTrainer(Trainer):
    """Trains a student on a weighted sum of terms.

    It differs from `Trainer` in the loss and in the order of examples. Each term's sum is divided by its count over
    the whole global batch: all accumulation micro-steps and all processes, so that 1x8, 2x4 and 8x1 give the same
    gradient. The teacher is whatever `source` is; the trainer hands it row numbers and gets tensors.

    Args:
        terms: the loss.
        source: where the teacher's signals come from; none when no term needs a teacher.
        words: makes a masked language model compute its words at the batch's `positions` alone, or a causal one stop
            before it computes any.
        own_answers: makes batches of the student's own answers.
        dropout: whether the student's dropout is on.
        precision: of a causal language model's head, which is no part of the model's own pass.
        eval_collator: makes a validation's batches; the training's own when not given.
        profile: of some of the updates.
        kwargs: `Trainer`'s own.
    """

    def __init__(
        self,
        *,
        terms: Sequence[Term],
        source: SignalSource | None,
        words: WordsAt | StatesAt | None = None,
        own_answers: OwnAnswers | None = None,
        dropout: bool = True,
        precision: str = "float32",
        eval_collator: Callable[..., Batch] | None = None,
        profile: Profile | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        if self.accelerator.ddp_handler is not None:
            half = self.args.bf16 and hardware.device().type == "cpu"
            kind = ExchangeInBfloat16 if half else DistributedDataParallelKwargs
            said = self.accelerator.ddp_handler.to_dict() | {"gradient_as_bucket_view": True}
            self.accelerator.ddp_handler = kind(**said)
        self.terms = list(terms)
        self.source, self.words, self.dropout, self.precision = source, words, dropout, precision
        self.own_answers, self.profile = own_answers, profile
        if profile is not None:
            self.add_callback(profile)
        wanted = reduce(or_, (term.student for term in self.terms), Wanted())
        # FSDP gathers a layer's weights for the backward pass when the gradient of its output comes. A loss on what is
        # within a layer alone has none there, so it gets one of zero.
        within = wanted.queries | wanted.keys | wanted.values | wanted.scores
        self._deepest = max(within) if within and sharded() else None
        if self._deepest is not None:
            wanted |= Wanted(hidden=frozenset([self._deepest]))
        self.capture = Capture(self.model, wanted)
        self.data_collator: Any
        self.eval_collator = eval_collator or self.data_collator
        self.loss_is_scaled_for_ga = True
        self._sums: torch.Tensor | None = None
        self._weights: torch.Tensor | None = None
        self._batches = 0

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:  # noqa: ANN401
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = (train_dataset or self.train_dataset)["length"][:]
        # Of the whole global batch: the same examples make an update however many processes share it.
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedByEpoch(size, lengths, self.args.seed, lambda: int(self.state.epoch or 0))

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Any:  # noqa: ANN401
        """By length: transformers groups few examples by it less than many, or not at all."""
        return longest_first(eval_dataset["length"][:]).tolist()

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """With no example twice in an epoch, however many processes share it, and batches not on the device yet."""
        loader: DataLoader[Batch] = super().get_train_dataloader()
        # Accelerate would move the rows, too, and wait for each tensor; see `get_batch_samples`.
        loader.device = None
        if self.args.world_size > 1:
            shard: Any = loader.batch_sampler
            shard.batch_sampler, shard.even_batches = EvenParts(shard.batch_sampler, self.args.world_size), False
        return loader

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader[Batch]:
        """With the validation's own collator."""
        ours, self.data_collator = self.data_collator, self.eval_collator
        try:
            loader: DataLoader[Batch] = super().get_eval_dataloader(eval_dataset)
            return loader
        finally:
            self.data_collator = ours

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor]:
        """The micro-batches of one update, and each term's count over all of them on all processes, float32 [terms]."""
        with region("data"):
            batches = [on_device(batch, device) for batch in islice(epoch_iterator, num_batches)]
        if self.profile is not None and batches:
            self.profile.saw(batches)
        update = self.state.global_step
        if self.own_answers is not None and self.own_answers.wanted(update):
            batches = [self._answered(batch, update, number) for number, batch in enumerate(batches)]
        if self.args.world_size > 1 and batches and self.accelerator.gradient_state.end_of_dataloader:
            size, here = self.args.train_batch_size, (self.args.world_size, self.args.process_index)
            if unused(len(self.train_dataset), size, *here):
                batches[-1][UNUSED] = torch.ones((), dtype=torch.bool)
        found = [
            torch.stack([term.count(batch) for term in self.terms]).float() for batch in batches if UNUSED not in batch
        ]
        counts = torch.stack(found).sum(0) if found else torch.zeros(len(self.terms))
        counts = counts.to(device, non_blocking=True)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        self._batches += bool(batches)
        self._look_ahead(batches)
        return batches, counts

    def _look_ahead(self, batches: list[Batch]) -> None:
        """Tell a term that averages over the whole global batch what is in it, before any part of it is learnt from."""
        balance = next((term for term in self.terms if isinstance(term, Balance)), None)
        if balance is None or not batches:
            return
        with torch.no_grad(), self.compute_loss_context_manager():
            given = [self._prepare_inputs(batch) for batch in batches]
            said = [balance.sums(self._forward(self.model, batch).paths) * (UNUSED not in batch) for batch in given]
        sums = torch.stack(said).sum(0)
        balance.begin(self.accelerator.reduce(sums, "sum") if self.args.world_size > 1 else sums)

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        """With the rows where they are."""
        moved: Batch = super()._prepare_inputs({name: each for name, each in inputs.items() if name != "row"})
        return moved | {"row": inputs["row"]}

    def _answered(self, batch: Batch, update: int, number: int) -> Batch:
        """A micro-batch with the student's own answers."""
        assert self.own_answers is not None
        assert isinstance(self.words, StatesAt)
        part = number * self.args.world_size + self.args.process_index
        return self.own_answers(self.accelerator.unwrap_model(self.model), batch, update, part)

    def _with_advantages(self, inputs: Batch, states: torch.Tensor, teacher: WordSource | None) -> Batch:
        """The batch with what each of its tokens led to, where a term asks for it."""
        term = next((term for term in self.terms if isinstance(term, PolicyGradient)), None)
        if term is None or teacher is None:
            return inputs
        assert isinstance(self.words, StatesAt)
        assert self.own_answers is not None
        size = vocabulary_size(self.own_answers.tokenizer)
        found = advantages(inputs, states.detach(), self.words.head, teacher, size, term.normalised)
        return inputs | {"advantages": found}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:  # noqa: ANN401
        """This micro-batch's share of the global batch's loss, times the number of processes (DDP averages)."""
        with region("loss"):
            return self._loss(model, inputs, return_outputs, num_items_in_batch)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
        """As `Trainer`'s, a part of the profile."""
        with region("step"):
            loss: torch.Tensor = super().training_step(*args, **kwargs)
            return loss

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not counted: transformers goes through all of a model's weights for it at every micro-batch."""
        return 0

    def _loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> Any:  # noqa: ANN401
        if not isinstance(num_items_in_batch, torch.Tensor):
            raise TypeError("the loss needs the counts that get_batch_samples makes")
        counts = num_items_in_batch.clamp(min=1)
        if not self.dropout:
            model.eval()  # the Trainer puts it into training mode before each step
        teacher = self._ask(inputs)
        outputs: Any = None

        def weigh(student: nn.Module, args: tuple[Any, ...], output: Any) -> torch.Tensor:  # noqa: ANN401
            nonlocal outputs
            outputs = output
            with region("terms"):
                losses, loss = self._weigh(output, teacher, inputs, counts)
                if UNUSED in inputs:
                    losses, loss = 0 * losses, 0 * loss
            # Summed on the device and read only when logged: no synchronisation per step.
            self._sums = losses if self._sums is None else self._sums + losses
            return loss * float(self.args.world_size)

        # The loss is computed within the student's forward pass: DistributedDataParallel looks at what that returns to
        # tell which weights get a gradient. Projections do and are used outside of the model; a pooler may not.
        handle = self.model.register_forward_hook(weigh)
        try:
            loss = self._forward(model, inputs)
        finally:
            handle.remove()
        return (loss, outputs) if return_outputs else loss

    def _weigh(
        self,
        output: Any,  # noqa: ANN401
        teacher: Signals | None,
        inputs: Batch,
        counts: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each term's share of its mean, float32 [terms] without a graph, and their weighted sum."""
        # Nothing here may wait for the device: no tensor is made of numbers, no boolean mask is an index.
        if self._weights is None:
            self._weights = torch.tensor([term.weight for term in self.terms], device=counts.device)
        scales = (self._weights / counts).unbind()
        apart = isinstance(self.words, StatesAt)
        at_words = [number for number, term in enumerate(self.terms) if apart and term.student.logits]
        signals = self.capture.signals(None if apart else getattr(output, "logits", None))
        if teacher is not None and hasattr(output, "distillation_logits"):
            signals.heads = {"labels": output.cls_logits, "teacher": output.distillation_logits}
        signals.paths = getattr(output, "paths", None)
        totals = list(torch.zeros(len(self.terms), device=counts.device).unbind())
        loss = torch.zeros((), device=counts.device)
        for number, term in enumerate(self.terms):
            if number not in at_words:
                total = term.total(signals, teacher, inputs)
                totals[number] = total.detach()
                loss = loss + scales[number] * total
        if isinstance(self.words, StatesAt):
            states = self.words.take()
            if at_words:
                terms = [self.terms[number] for number in at_words]
                chosen = torch.stack([scales[number] for number in at_words])
                source = teacher.at_words if teacher is not None else None
                if "own" in inputs and self.own_answers is not None:
                    inputs = self._with_advantages(inputs, states, source)
                # Autocast ends with the model's own pass, and in float32 the head would be most of a GPU's work. Not in
                # float16: it has no room for a mean's gradient, which nothing scales here.
                with hardware.autocast("bfloat16" if self.precision == "bfloat16" else "float32"):
                    each, some = over_vocabulary(terms, chosen, states, self.words.head, source, inputs)
                for number, total in zip(at_words, each.unbind(), strict=True):
                    totals[number] = total
                loss = loss + some
        if self._deepest is not None:
            loss = loss + 0 * signals.hidden[self._deepest].float().sum()
        return torch.stack(totals) / counts, loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write a checkpoint's weights under the names that the model has for them.

        The Trainer loads them by these and skips what it does not find; `save_pretrained` by itself writes those that
        an architecture was published with, which are others for DeiT and ViT: their layers would start afresh.
        """
        model: Any = self.accelerator.unwrap_model(self.model)
        model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
        try:
            super()._save(output_dir, state_dict)
        finally:
            del model.save_pretrained

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Logits and labels of a validation batch; of words, how many were right and asked for [1, 2].

        Of a causal language model the negative log-likelihood of its words, too [1, 3].
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = self._forward(model, inputs)
            if isinstance(self.words, StatesAt):
                loss, right = word_scores(self.words.take(), self.words.head, inputs["targets"])
                sums = torch.stack([loss.sum(), right.sum(), torch.full_like(loss[0], len(loss))])
                return None, sums[None], torch.zeros(1, device=loss.device)
            logits = output.logits.float()
        if "targets" not in inputs:
            return None, logits, inputs["labels"]
        # Words over a whole vocabulary are too many to gather; a batch's sums are enough for the metrics.
        asked = inputs["targets"] != -100
        right = (logits.argmax(-1) == inputs["targets"])[asked].sum()
        return None, torch.stack([right, asked.sum()])[None].float(), torch.zeros(1, device=logits.device)

    def _ask(self, inputs: Batch) -> Signals | None:
        """The teacher's signals about a batch, on its device."""
        if self.source is None:
            return None
        with region("knowledge"):
            said, device = self.source.signals(inputs), self.args.device
            said.logits = None if said.logits is None else hardware.send(said.logits, device)
            said.features = {layer: hardware.send(states, device) for layer, states in said.features.items()}
        return said

    def _forward(self, model: nn.Module, inputs: Batch) -> Any:  # noqa: ANN401
        if self.words is not None:
            self.words.positions = inputs["positions"]
        told = causal_inputs(inputs) if isinstance(self.words, StatesAt) else model_inputs(inputs)
        try:
            return model(**told)
        finally:
            if self.words is not None:
                self.words.positions = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each term's mean, unweighted, since the last log."""
        if "loss" in logs and self._sums is not None:
            # A process holds its share of each update's mean; the shares of all add up to it.
            sums = self.accelerator.reduce(self._sums, "sum") if self.args.world_size > 1 else self._sums
            values = (sums / max(self._batches, 1)).tolist()
            logs |= {term.name: value for term, value in zip(self.terms, values, strict=True)}
            self._sums, self._batches = None, 0
        super().log(logs, start_time)
