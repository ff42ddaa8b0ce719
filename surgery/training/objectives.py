"""What a healing minimises: batches of windows, and for each of them a function of the student's logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from surgery.recipe.healing import Distillation
from surgery.training import losses
from surgery.training.data import HealingText
from surgery.training.head import CrossEntropy, Objective
from surgery.training.teacher import Teacher, TopK


@dataclass(frozen=True)
class Batch:
    """Windows that go through the student together: ids and what is learnt of them, (windows, tokens) each."""

    indices: tuple[int, ...]
    ids: torch.Tensor
    learnt: torch.Tensor
    keys: tuple[str, ...]
    """Identities of the windows, for memories of states."""

    @property
    def scored(self) -> torch.Tensor:
        """Whether the token behind each one but the last is learnt from, bool (windows, tokens - 1)."""
        return self.learnt[:, 1:]

    @property
    def targets(self) -> torch.Tensor:
        """The tokens that are learnt from, (positions,)."""
        return self.ids[:, 1:][self.scored]


class PlainText:
    """Cross-entropy of the text."""

    def __init__(self, text: HealingText) -> None:
        self.ids, self.learnt = text.windows.ids, text.learnt

    @property
    def count(self) -> int:
        """Windows that there are to choose from."""
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some of the windows."""
        chosen = list(indices)
        return Batch(tuple(chosen), self.ids[chosen], self.learnt[chosen], tuple(map(str, chosen)))

    def tokens(self, indices: Sequence[int]) -> int:
        """Tokens that some windows are learnt from."""
        return int(self.learnt[list(indices), 1:].sum())

    def objective(self, batch: Batch) -> Objective:
        """What is minimised on a batch, summed over its learnt tokens."""
        return CrossEntropy(batch.targets)

    def features(self, batch: Batch, states: Sequence[torch.Tensor], sources: Sequence[int]) -> torch.Tensor | None:
        """A further loss on the states that leave the student's blocks; None where there is none."""
        return None

    def wants_states(self) -> bool:
        """Whether `features` looks at states."""
        return False


class Distilled(PlainText):
    """The teacher's predictions on the text.

    Args:
        settings: of the distillation; not the contrastive one.
        top: its likeliest words, where they are kept instead of its states.
    """

    def __init__(self, text: HealingText, settings: Distillation, teacher: Teacher, top: TopK | None = None) -> None:
        super().__init__(text)
        self.settings, self.teacher, self.top = settings, teacher, top

    def objective(self, batch: Batch) -> Objective:
        """As `PlainText.objective`."""
        settings, targets = self.settings, batch.targets
        if self.top is None:
            inputs = self.teacher.normalised(batch.ids, batch.keys)[:, :-1][batch.scored]
            if settings.divergence == "kl" and not settings.cross_entropy:  # the usual one, without autograd

                def plain(logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
                    teacher = self.teacher.logits(inputs[rows])
                    loss, slope = losses.kl_and_slope(logits, teacher, settings.temperature)
                    return settings.weight * loss, slope.mul_(settings.weight)

                return plain

            def distance(logits: torch.Tensor, rows: slice) -> torch.Tensor:
                teacher = self.teacher.logits(inputs[rows])
                return losses.divergence(
                    settings.divergence, logits, teacher, settings.temperature, settings.skew
                ).sum()
        else:
            pairs = [self.top.window(index, ids) for index, ids in zip(batch.indices, batch.ids, strict=True)]
            values, words = (torch.stack([pair[part] for pair in pairs])[batch.scored] for part in (0, 1))

            def distance(logits: torch.Tensor, rows: slice) -> torch.Tensor:
                top, places = values[rows].to(logits.device), words[rows].to(logits.device)
                return losses.divergence_on_top(
                    settings.divergence, logits, top, places, settings.temperature, settings.skew
                ).sum()

        return _by_autograd(distance, settings, targets)

    def features(self, batch: Batch, states: Sequence[torch.Tensor], sources: Sequence[int]) -> torch.Tensor | None:
        """As `PlainText.features`: the mean over blocks of the distance to the state that leaves the source block."""
        if not self.settings.features:
            return None
        wanted = self.teacher.states(batch.ids)
        distances = [
            losses.feature_distance(state, wanted[source]) for state, source in zip(states, sources, strict=True)
        ]
        return self.settings.features * torch.stack(distances).mean()

    def wants_states(self) -> bool:
        """As `PlainText.wants_states`."""
        return self.settings.features > 0


class Contrastive(Distilled):
    """DistiLLM-2's pair on continuations of prompts out of the text. Source: DistiLLM-2 (2503.07067).

    Window i of either kind goes through the student together, the teacher's text first.

    Args:
        text: the windows whose beginnings were the prompts.
        pair: windows with the teacher's and with the student's continuations, (windows, tokens) each.
        prompt: tokens of the prompts, which are not learnt from.
    """

    def __init__(
        self,
        text: HealingText,
        settings: Distillation,
        teacher: Teacher,
        pair: tuple[torch.Tensor, torch.Tensor],
        prompt: int,
    ) -> None:
        super().__init__(text, settings, teacher)
        self.pair = pair
        self.learnt = torch.zeros_like(pair[0], dtype=torch.bool)
        self.learnt[:, prompt:] = True

    @property
    def count(self) -> int:
        """As `PlainText.count`."""
        return len(self.pair[0])

    def batch(self, indices: Sequence[int]) -> Batch:
        """As `PlainText.batch`, of both kinds."""
        chosen = list(indices)
        ids = torch.cat([kind[chosen] for kind in self.pair])
        keys = tuple(f"{kind} {index}" for kind in ("teacher", "student") for index in chosen)
        return Batch(tuple(chosen), ids, self.learnt[chosen].repeat(2, 1), keys)

    def objective(self, batch: Batch) -> Objective:
        """As `PlainText.objective`; the sum over both kinds divided by the tokens of one is the published loss."""
        settings = self.settings
        inputs = self.teacher.normalised(batch.ids, batch.keys)[:, :-1][batch.scored]
        half = len(inputs) // 2

        def distance(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            teacher = self.teacher.logits(inputs[rows])
            border = min(max(half - rows.start, 0), len(logits))
            parts = (
                ("skew_kl", slice(None, border), 2 - settings.balance),
                ("skew_reverse_kl", slice(border, None), settings.balance),
            )
            values = [
                share * losses.divergence(name, logits[part], teacher[part], settings.temperature, settings.skew).sum()
                for name, part, share in parts
            ]
            return torch.stack(values).sum()

        return _by_autograd(distance, settings, batch.targets)


def _by_autograd(
    distance: Callable[[torch.Tensor, slice], torch.Tensor], settings: Distillation, targets: torch.Tensor
) -> Objective:
    """The weighted sum of a distance and the cross-entropy, differentiated in the logits."""

    def objective(logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            loss = settings.weight * distance(leaf, rows)
            if settings.cross_entropy:
                loss = loss + settings.cross_entropy * losses.cross_entropy(leaf, targets[rows].to(leaf.device)).sum()
        (slope,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), slope

    return objective
