"""DistilBERT's published training loop, as one side of peers.py: masked words, soft targets and hidden states.

What `distiller.py` of huggingface/transformers-research-projects does in a step, on examples and masks made as
Limbeck's are: teacher and student over whole batches of texts of like length, logits of all of their tokens chosen by a
mask, weights 5, 2 and 1 at a temperature of 2, AdamW with its betas, 5 % of warm-up, gradients clipped at 5. Float32,
like its recipe for one GPU without apex.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, get_linear_schedule_with_warmup
from transformers.trainer_pt_utils import LengthGroupedSampler

from limbeck.tasks.masked_lm import MaskedBatches, encode_corpus

TEMPERATURE, SOFT, WORDS, COSINE = 2.0, 5.0, 2.0, 1.0


def step(teacher: PreTrainedModel, student: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of a batch; see section 2 of the paper."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    said = student(**inputs, output_hidden_states=True)
    with torch.no_grad():
        told = teacher(**inputs, output_hidden_states=True)
    kept = batch["attention_mask"].bool().unsqueeze(-1)
    size = said.logits.shape[-1]
    ours = torch.masked_select(said.logits, kept.expand_as(said.logits)).view(-1, size)
    theirs = torch.masked_select(told.logits, kept.expand_as(told.logits)).view(-1, size)
    divergence = F.kl_div(
        F.log_softmax(ours / TEMPERATURE, -1), F.softmax(theirs / TEMPERATURE, -1), reduction="batchmean"
    )
    labels = torch.full_like(batch["input_ids"], -100)
    labels.view(-1)[batch["positions"]] = batch["targets"]
    words = F.cross_entropy(said.logits.view(-1, size), labels.view(-1))
    states = [each.hidden_states[-1] for each in (said, told)]
    ends = [torch.masked_select(each, kept.expand_as(each)).view(-1, each.shape[-1]) for each in states]
    cosine = F.cosine_embedding_loss(*ends, torch.ones(len(ends[0])))
    return SOFT * TEMPERATURE**2 * divergence + WORDS * words + COSINE * cosine


def train(ready: Any, batch_size: int, rate: float, seed: int) -> float:
    """Seconds that an epoch takes, tokenising included; changes the student in place."""
    teacher, student = ready.teachers[0].model.eval(), ready.student.model.train()
    started = time.perf_counter()
    learn = encode_corpus(ready.splits.corpus, ready.student.tokenizer, 128, packed=False)
    loader = DataLoader(
        learn,
        batch_size,
        sampler=LengthGroupedSampler(
            batch_size, lengths=learn["length"][:], generator=torch.Generator().manual_seed(seed)
        ),
        collate_fn=MaskedBatches(ready.student.tokenizer, 0.15, False, True, seed, lambda: 0),
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, eps=1e-6, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.05 * len(loader)), len(loader))
    for batch in loader:
        step(teacher, student, batch).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return time.perf_counter() - started
