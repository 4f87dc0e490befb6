"""Distances between the teacher's and the student's distribution over classes or words, at a temperature T.

With p = softmax(t / T) of the teacher and q = softmax(s / T) of the student, per row:

- `kl`: T^2 * KL(p || q), forward: the student must cover whatever the teacher says (Hinton et al. 2015).
- `reverse-kl`: T^2 * KL(q || p): the student must say nothing that the teacher would not (Gu et al. 2024, MiniLLM).
- `jsd`: T^2 * (beta KL(p || m) + (1 - beta) KL(q || m)), m = beta p + (1 - beta) q: the generalised Jensen-Shannon
  divergence (Agarwal et al. 2024, GKD, section 2). Near beta = 0 it is beta times `kl`, near 1 it is 1 - beta times
  `reverse-kl`; at 1/2 it is symmetric and at most T^2 log 2.
- `total-variation`: T / 2 * sum |p - q|.
- `cross-entropy`: `kl` and T^2 times the teacher's entropy; the same gradient.

The powers of T keep the gradient's scale the same at every temperature: it falls with 1/T^2, that of the total
variation with 1/T.

Of sparse words (`limbeck.knowledge.formats`) the loss is about what was kept:

- `kl` and `cross-entropy` of `sampled` and `head_and_tail`: the sum over the teacher's tail is estimated from the drawn
  tokens. Value and gradient are right on average over draws.
- `kl` and `cross-entropy` of `top_k`, and all other forms of every format: the distance of p and q over the k kept
  tokens and one more for all the rest. It is at most the true distance, and its gradient moves the student's tail as a
  whole. `sampled` keeps no token for certain, so these forms refuse it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from limbeck.signals import SparseWords

FORMS = ("kl", "reverse-kl", "jsd", "total-variation", "cross-entropy")
_LEAST = 1e-7
_NEVER = -1e30


def distance(
    s: torch.Tensor, t: torch.Tensor | SparseWords, form: str, temperature: float, beta: float = 0.5
) -> torch.Tensor:
    """The distance of each row, float32 [N].

    Args:
        s: the student's logits, float32 [N, V].
        t: the teacher's logits, float32 [N, W], or sparse words. Tokens beyond W <= V, which pad a vocabulary, have
            probability zero: `kl` and `cross-entropy` drive the student's mass away from them; the others, which would
            be infinite or flat there, compare the first W alone.
        form: one of `FORMS`.
        temperature: T; sparse words must have been kept at the same.
        beta: of `jsd`, in (0, 1).

    Raises:
        ValueError: sparse words at another temperature, or without a head where the form needs one.
    """
    if isinstance(t, SparseWords):
        return _sparse(s, t, form, temperature, beta)
    scale = temperature if form == "total-variation" else temperature**2
    width = t.shape[-1]
    if form in ("kl", "cross-entropy"):
        t = F.pad(t, (0, s.shape[-1] - width), value=_NEVER) if width < s.shape[-1] else t
    else:
        s = s[:, :width]
    return scale * _between(_at(t, temperature).log_softmax(-1), _at(s, temperature).log_softmax(-1), form, beta)


def _between(p: torch.Tensor, q: torch.Tensor, form: str, beta: float) -> torch.Tensor:
    """The distance of log-probabilities p and q [N, K], without the factor for the temperature."""
    if form == "kl":
        return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    if form == "cross-entropy":
        return -(p.exp() * q).sum(-1)
    if form == "reverse-kl":
        return F.kl_div(p, q, reduction="none", log_target=True).sum(-1)
    if form == "total-variation":
        return (p.exp() - q.exp()).abs().sum(-1) / 2
    mixture = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    forward = F.kl_div(mixture, p, reduction="none", log_target=True).sum(-1)
    reverse = F.kl_div(mixture, q, reduction="none", log_target=True).sum(-1)
    return beta * forward + (1 - beta) * reverse


def _at(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return logits if temperature == 1 else logits / temperature  # a division by 1 would copy a vocabulary's logits


def _sparse(s: torch.Tensor, t: SparseWords, form: str, temperature: float, beta: float) -> torch.Tensor:
    if t.temperature != temperature:
        raise ValueError(f"the words were kept at temperature {t.temperature:g}, the loss is at {temperature:g}")
    head = t.logs.shape[-1]
    scaled = _at(s, temperature)
    kept = scaled.gather(-1, t.ids)
    partition = scaled.logsumexp(-1)
    if form in ("kl", "cross-entropy") and t.drawn:
        said = (t.logs.exp() * kept[:, :head]).sum(-1) + t.tail * kept[:, head:].mean(-1)
        cross = partition - said
        return temperature**2 * (cross if form == "cross-entropy" else cross - t.entropy)
    if head == 0:
        raise ValueError(f"{form} needs tokens that are kept for certain; use the format head_and_tail or top_k")
    q = kept[:, :head] - partition[:, None]
    rest = torch.log1p(-q.exp().sum(-1, keepdim=True).clamp(max=1 - _LEAST))
    its_rest = t.tail[:, None].clamp(min=_LEAST).log()
    scale = temperature if form == "total-variation" else temperature**2
    return scale * _between(torch.cat([t.logs, its_rest], -1), torch.cat([q, rest], -1), form, beta)
