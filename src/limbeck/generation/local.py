"""A causal language model that answers prompts here."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Container, Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset
from jinja2 import TemplateError
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from limbeck import hardware
from limbeck.checkpoints import Checkpoint, ends_of, quiet, tokenizer_fingerprint, weights_fingerprint
from limbeck.data.chat import Messages, prompt_text
from limbeck.errors import InputError
from limbeck.generation.answers import Answer, Ask
from limbeck.recipe.data import Generation
from limbeck.rules.tokens import RulesProcessor, TokenRules


class LocalTeacher:
    """A causal language model with a chat template, on this process's device and in its precision.

    Only the settings given here decide: what the model's own `generation_config` says of sampling, penalties and
    lengths is left aside. Its tokens that end an answer count, and the tokenizer's.

    Args:
        checkpoint: the model, which is not changed, and its tokenizer.
        settings: the recipe's section.
        rules: that its answers are held to as they are written, in its own tokens.

    Raises:
        InputError: a tokenizer without a chat template, or no token that ends an answer.
    """

    divides = True

    def __init__(self, checkpoint: Checkpoint, settings: Generation, rules: TokenRules | None = None) -> None:
        self.model, self.tokenizer, self.name = checkpoint
        self.settings, self.rules = settings, rules
        if not self.tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of '{self.name}' has no chat template, so it cannot be asked; give a model made for "
                "chat, or set tokenizer.chat_template and save it again"
            )
        self.ends = ends_of(checkpoint)
        if not self.ends:
            raise InputError(
                f"'{self.name}' has no token that ends an answer; set tokenizer.eos_token and save it again"
            )

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Weights, tokenizer, chat template, tokens that end an answer, precision, and the rules if there are any."""
        rules = {"rules": self.rules.text.book.fingerprint} if self.rules is not None else {}
        return rules | {
            "weights": weights_fingerprint(self.model),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "template": hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest(),
            "ends": self.ends,
            "precision": hardware.pick_precision(),
        }

    def check(self, prompts: Dataset) -> None:
        """Refuse prompts that the template does not take, or that leave too little room, or the rules no text.

        Raises:
            InputError: names the row, counted from 1; of the rules, the prompt.
        """
        if self.rules is not None:
            self.rules.check([prompt_text(messages) for messages in prompts["messages"]])
        positions = getattr(self.model.config, "max_position_embeddings", None)
        room = self.settings.max_new_tokens
        for row, messages in enumerate(prompts["messages"]):
            length = len(self._encode(messages, row))
            if positions is not None and length + room > positions:
                raise InputError(
                    f"row {row + 1} of the prompts has {length} tokens, which with data.generation.max_new_tokens="
                    f"{room} is more than the {positions} that '{self.name}' reads; remove the row or lower the number"
                )

    @torch.inference_mode()
    def answer(self, parts: Iterable[list[Ask]], known: Container[tuple[int, int]]) -> Iterator[list[Answer]]:
        """Answers, a batch at a time: within a part the longest prompts first, so that batches need little padding.

        Which prompts share a batch follows from the part alone, so that after a kill it is the same ones.
        """
        model = self._working_copy()
        for asks in parts:
            prompts = [self._encode(ask.messages, ask.row) for ask in asks]
            order = sorted(range(len(asks)), key=lambda place: -len(prompts[place]))
            for start in range(0, len(order), self.settings.batch_size):
                places = order[start : start + self.settings.batch_size]
                batch = [asks[place] for place in places]
                if not all((ask.row, ask.sample) in known for ask in batch):
                    yield self._generate(model, batch, [prompts[place] for place in places])

    def _encode(self, messages: Messages, row: int) -> list[int]:
        try:
            ids: list[int] = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except TemplateError as error:
            raise InputError(
                f"the chat template of '{self.name}' does not take row {row + 1} of the prompts: {error}"
            ) from None
        return ids

    def _working_copy(self) -> PreTrainedModel:
        """The model on the device in the precision; where neither differs, its very weights."""
        device, dtype = hardware.device(), hardware.DTYPES[hardware.pick_precision()]
        # Weights alone change their type: buffers such as rotary frequencies must not be rounded.
        weights = {
            id(weight): torch.nn.Parameter(weight.detach().to(device, dtype), requires_grad=False)
            for weight in self.model.parameters()
        }
        model = copy.deepcopy(self.model, weights).to(device).eval()
        return model

    def _generate(self, model: PreTrainedModel, asks: list[Ask], prompts: list[list[int]]) -> list[Answer]:
        padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.ends[0]
        settings = self.settings
        config = GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            num_beams=settings.beams,
            eos_token_id=self.ends,
            pad_token_id=padding,
        )
        steps = LogitsProcessorList()
        if self.rules is not None:
            steps.append(RulesProcessor(self.rules, [prompt_text(ask.messages) for ask in asks]))
        if settings.temperature > 0:
            steps.append(SeededSampling(settings.temperature, settings.top_p, [ask.seed for ask in asks], model.device))
        rows = written(model, prompts, config, steps)
        return [self._read(ask, row, len(prompt)) for ask, row, prompt in zip(asks, rows, prompts, strict=True)]

    def _read(self, ask: Ask, row: list[int], prompt: int) -> Answer:
        end = next((place for place, token in enumerate(row) if token in self.ends), None)
        text = str(self.tokenizer.decode(row[:end], skip_special_tokens=True)).strip()
        return Answer(ask.row, ask.sample, text, end is None, len(row) if end is None else end + 1, prompt)


def written(
    model: PreTrainedModel, prompts: list[list[int]], config: GenerationConfig, steps: LogitsProcessorList
) -> list[list[int]]:
    """What a causal language model goes on with after each prompt of a batch, token ids with whatever pads them.

    Args:
        model: its own `generation_config`, which would fill in what `config` leaves out, is left aside meanwhile.
        prompts: token ids.
        config: with `pad_token_id` and `eos_token_id`.
        steps: what is done to the scores.
    """
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    device = model.device
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with quiet():
            out = model.generate(
                ids.to(device), attention_mask=mask.to(device), generation_config=config, logits_processor=steps
            )
    finally:
        model.generation_config = own
    found: list[list[int]] = out[:, width:].tolist()
    return found


class SeededSampling(LogitsProcessor):
    """Sampling as a choice of the greatest, each row with draws of its own, so that none depends on its batch.

    With independent E_i ~ Exponential(1), the i that maximises s_i - log E_i is distributed as softmax(s) (the
    Gumbel-max trick), here at a temperature and among the tokens that `top_p` leaves. It goes with `do_sample=False`.

    Args:
        temperature: above 0.
        top_p: 1 for all tokens.
        seeds: one for each row.
        device: what the scores are on; another kind of device draws other numbers.
    """

    def __init__(self, temperature: float, top_p: float, seeds: list[int], device: torch.device) -> None:
        self.warpers = [TemperatureLogitsWarper(temperature)] + ([TopPLogitsWarper(top_p)] if top_p < 1 else [])
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] whose greatest is the next token."""
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.clamp_min_(torch.finfo(noise.dtype).tiny).log_()
