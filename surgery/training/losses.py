"""Distillation losses, each a pure function of logits. p is the teacher, q the student; one loss a token, in nats.

Every divergence is stated on log-probabilities (n, outcomes) in `DIVERGENCES` and applied to logits by `divergence`.
At temperature T both distributions are softened and the loss is multiplied by T^2, so that its gradient keeps its
size; the mean is taken over tokens by the caller, never over the vocabulary. Source: Minitron (2407.14679), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


def kl(p: torch.Tensor, q: torch.Tensor, skew: float = 0.0) -> torch.Tensor:
    """KL(p || q) = sum p (log p - log q)."""
    return (p.exp() * (p - q)).sum(dim=-1)


def reverse_kl(p: torch.Tensor, q: torch.Tensor, skew: float = 0.0) -> torch.Tensor:
    """KL(q || p) = sum q (log q - log p)."""
    return (q.exp() * (q - p)).sum(dim=-1)


def skew_kl(p: torch.Tensor, q: torch.Tensor, skew: float) -> torch.Tensor:
    """sum p [log p - log(a p + (1 - a) q)], a the skew; KL at a = 0. Source: DistiLLM-2 (2503.07067)."""
    return (p.exp() * (p - _mixture(p, q, skew))).sum(dim=-1)


def skew_reverse_kl(p: torch.Tensor, q: torch.Tensor, skew: float) -> torch.Tensor:
    """sum q [log q - log((1 - a) p + a sg(q))], sg a constant in the gradient. Source: DistiLLM-2 (2503.07067)."""
    return (q.exp() * (q - _mixture(q.detach(), p, skew))).sum(dim=-1)


def _mixture(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """log(share e^first + (1 - share) e^second)."""
    if share == 0:
        return second
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


Statement = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
DIVERGENCES: dict[str, Statement] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
}


def divergence(
    name: str, student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0, skew: float = 0.1
) -> torch.Tensor:
    """T^2 times a divergence of the softened distributions, (n,).

    Args:
        name: of `DIVERGENCES`.
        student: logits (n, vocabulary).
        teacher: logits (n, vocabulary).
        temperature: T.
        skew: a.
    """
    p = (teacher / temperature).log_softmax(dim=-1)
    q = (student / temperature).log_softmax(dim=-1)
    return temperature**2 * DIVERGENCES[name](p, q, skew)


@torch.no_grad()
def kl_and_slope(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over tokens of the divergence `kl` and its gradient in the student's logits, T (q - p), T the temperature.

    Both logits (n, vocabulary) are overwritten, the student's by the gradient.
    """
    q = torch.log_softmax(student.div_(temperature), dim=-1, out=student)
    p = torch.log_softmax(teacher.div_(temperature), dim=-1, out=teacher)
    mass = p.exp()
    loss = temperature**2 * torch.dot(mass.flatten(), p.sub_(q).flatten())
    return loss, q.exp_().sub_(mass).mul_(temperature)


def top_log_probabilities(teacher: torch.Tensor, k: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest softened log-probabilities (n, k) and their words (n, k); the rest is what is missing to 1."""
    values, words = (teacher / temperature).log_softmax(dim=-1).topk(k, dim=-1)
    return values, words


def divergence_on_top(
    name: str,
    student: torch.Tensor,
    top: torch.Tensor,
    words: torch.Tensor,
    temperature: float = 1.0,
    skew: float = 0.1,
) -> torch.Tensor:
    """T^2 times a divergence over k + 1 outcomes, (n,): the teacher's k likeliest words, and all others as one.

    Both distributions stay whole, so nothing is rescaled: the loss is zero exactly where the student gives each of the
    k words and the rest together the teacher's mass, and it is never above the divergence over the vocabulary (data
    processing inequality). How the rest is spread is not taught.

    Args:
        name: of `DIVERGENCES`.
        student: logits (n, vocabulary).
        top: the teacher's softened log-probabilities, (n, k).
        words: which words they are of, (n, k).
        temperature: T, the one that `top` was softened with.
        skew: a.
    """
    soft = student / temperature
    total = soft.logsumexp(dim=-1, keepdim=True)
    others = soft.scatter(-1, words, -math.inf).logsumexp(dim=-1, keepdim=True)
    q = torch.cat([soft.gather(-1, words), others], dim=-1) - total
    rest = torch.log1p(-top.exp().sum(dim=-1, keepdim=True).clamp(max=1 - 1e-7))
    p = torch.cat([top, rest], dim=-1)
    return temperature**2 * DIVERGENCES[name](p, q, skew)


def feature_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cos between states (..., hidden), a mean over all of them: 0 where they point the same way."""
    return 1 - torch.nn.functional.cosine_similarity(student, teacher, dim=-1).mean()


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log q of each target, (n,)."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
