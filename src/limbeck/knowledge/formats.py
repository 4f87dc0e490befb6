"""What is kept of a teacher's distribution over a large vocabulary, in bytes.

All of a distribution is two bytes a token of the vocabulary: 98 kB for each token of text at 49,152. Four formats:

- `dense`: every log-probability, float16. Nothing is lost but rounding, and any temperature can be taken later.
- `top_k`: the k likeliest tokens with their log-probabilities; what is left is one bucket. A student learns nothing of
  the tail but its mass, so its gradient is biased.
- `sampled`: n tokens drawn from the distribution, each with weight 1/n (Anshumann et al. 2025, arXiv 2503.16870,
  section 4). The cross entropy's gradient is right on average.
- `head_and_tail`: the k likeliest exactly, and n drawn from the rest, each with weight tail mass / n. Right on average
  like `sampled`, without the noise of the head.

"Exactly" and "on average" are up to the rounding of what is kept: by a 4,096th of a probability at most in 16 bits, by
a 32nd in 8, which more draws do not take away.

A token of text takes `width` bytes: ids in as few whole bytes as the vocabulary needs, log-probabilities of the head in
8 or 16 bits, and the distribution's entropy in float16, by which a loss knows its lowest value.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from limbeck.signals import SparseWords

Kind = Literal["dense", "top_k", "sampled", "head_and_tail"]
STEPS = {8: 16.0, 16: 2048.0}
"""Steps per nat of a log-probability kept in so many bits: from 0 down to -16 or -32."""
BLOCK = 256


@dataclass(frozen=True)
class Format:
    """How distributions over `vocabulary` tokens are kept.

    Attributes:
        kind: see the module.
        head: tokens kept exactly.
        sampled: tokens drawn.
        bits: of each kept log-probability, 8 or 16.
        vocabulary: the number of tokens.
        temperature: the teacher's logits are divided by it first; `dense` keeps those at 1.
    """

    kind: Kind
    head: int
    sampled: int
    bits: int
    vocabulary: int
    temperature: float = 1.0

    @property
    def id_bytes(self) -> int:
        """Whole bytes that hold any id."""
        return ((self.vocabulary - 1).bit_length() + 7) // 8

    @property
    def width(self) -> int:
        """Bytes for each token of text."""
        if self.kind == "dense":
            return 2 * self.vocabulary
        return (self.head + self.sampled) * self.id_bytes + self.head * self.bits // 8 + 2

    @property
    def spec(self) -> dict[str, Any]:
        """As JSON values, for a store's key."""
        return asdict(self)


def pack(logits: torch.Tensor, form: Format, uniform: torch.Tensor) -> torch.Tensor:
    """Distributions as bytes.

    Args:
        logits: the teacher's, float [N, V].
        form: how; `form.vocabulary` is V.
        uniform: draws from [0, 1), float32 [N, n], that decide which tokens are sampled.

    Returns:
        uint8 [N, width].
    """
    if form.kind == "dense":
        return logits.float().log_softmax(-1).half().view(torch.uint8)
    scaled = logits.float() / form.temperature
    p = scaled.softmax(-1)
    likeliest = _largest(p, max(form.head, 1))
    partition = scaled.gather(-1, likeliest[:, :1]) - p.gather(-1, likeliest[:, :1]).log()
    entropy = partition - torch.bmm(p[:, None], scaled[..., None])[:, 0]
    head = likeliest[:, : form.head]
    logs = scaled.gather(-1, head) - partition
    drawn = head[:, :0]
    if form.sampled:
        drawn = _draw(p.scatter_(-1, head, 0.0), uniform)
        # Where the head has all of the mass (rules may leave a single token), rounding makes a little of it again.
        drawn = torch.where(p.gather(-1, drawn) > 0, drawn, likeliest[:, :1])
    steps, largest = STEPS[form.bits], 2**form.bits - 1
    values = (-logs * steps).round().clamp(0, largest).long()
    ids = _to_bytes(torch.cat([head, drawn], -1), form.id_bytes)
    return torch.cat([ids, _to_bytes(values, form.bits // 8), entropy.half().view(torch.uint8)], -1)


def unpack(packed: torch.Tensor, form: Format) -> torch.Tensor | SparseWords:
    """What `pack` kept: of `dense` log-probabilities float16 [N, V], else sparse words; on the bytes' own device."""
    if form.kind == "dense":
        return packed.view(torch.float16)
    kept = form.head + form.sampled
    ids_end = kept * form.id_bytes
    ids = _from_bytes(packed[:, :ids_end], form.id_bytes)
    values = _from_bytes(packed[:, ids_end:-2], form.bits // 8)
    logs = values.float() / -STEPS[form.bits]
    entropy = packed[:, -2:].contiguous().view(torch.float16).float().squeeze(-1)
    return SparseWords(ids, logs, form.sampled, entropy, form.temperature)


def _largest(p: torch.Tensor, count: int) -> torch.Tensor:
    """Ids [N, count] of the largest of each row [N, V], largest first.

    They lie in the `count` blocks with the largest maxima; to look there alone is several times faster than `topk`.
    """
    blocks = _blocks(p)
    if count >= blocks.shape[1]:
        return p.topk(count, -1).indices
    best = blocks.amax(-1).topk(count, -1).indices
    within = blocks.gather(1, best[..., None].expand(-1, -1, BLOCK)).flatten(1).topk(count, -1).indices
    return best.gather(1, within // BLOCK) * BLOCK + within % BLOCK


def _draw(p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Ids [N, n] drawn in proportion to p [N, V], one from each n-th part of the mass.

    Each part's draw is uniform within it, so every token's expected share is its own; spreading them over the parts
    takes away the noise of how many fall where. First the block is found, then the token in it.
    """
    count, blocks = uniform.shape[-1], _blocks(p)
    up_to = blocks.sum(-1).double().cumsum(-1)
    at = (torch.arange(count, device=p.device) + uniform.double()) / count * up_to[:, -1:]
    block = torch.searchsorted(up_to, at, right=True).clamp(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, up_to.gather(-1, (block - 1).clamp(min=0)), 0)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK))
    within_up_to = inside.double().cumsum(-1)
    place = torch.searchsorted(within_up_to, (at - before)[..., None], right=True).squeeze(-1)
    # Sums of different rounding could lead past the block's last token that has any mass. Where no mass is left at all,
    # it is some token without.
    last = BLOCK - 1 - (inside > 0).flip(-1).byte().argmax(-1)
    return (block * BLOCK + torch.minimum(place, last)).clamp(max=p.shape[-1] - 1)


def _blocks(p: torch.Tensor) -> torch.Tensor:
    """Probabilities [N, V] as blocks [N, V / BLOCK, BLOCK], zeros at the end."""
    short = -p.shape[-1] % BLOCK
    padded = F.pad(p, (0, short)) if short else p
    return padded.view(len(p), -1, BLOCK)


def _to_bytes(numbers: torch.Tensor, size: int) -> torch.Tensor:
    """Numbers int64 [N, k] as little-endian bytes uint8 [N, k * size]."""
    return numbers.contiguous().view(torch.uint8).view(*numbers.shape, 8)[..., :size].flatten(-2)


def _from_bytes(packed: torch.Tensor, size: int) -> torch.Tensor:
    parts = packed.reshape(len(packed), -1, size).long()
    return sum((parts[..., place] << 8 * place for place in range(1, size)), parts[..., 0])
