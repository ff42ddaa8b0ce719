"""The training loop: one optimiser over the student's adapters, the best held-out state kept, stopped within a step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal

import psutil
import torch

from analysis.seeds import generator_for
from surgery.common.failure import out_of_memory
from surgery.errors import Cancelled, InputError
from surgery.evaluation.estimate import perplexity_of
from surgery.recipe.healing import Heal
from surgery.training import state as checkpoints
from surgery.training.data import HealingText
from surgery.training.head import loss_and_gradient
from surgery.training.objectives import Batch, PlainText
from surgery.training.processes import Processes
from surgery.training.state import TrainingState
from surgery.training.student import Student

CHECKPOINT_SECONDS = 60.0
"""Between two states on disk."""
Ending = Literal["steps", "patience", "cancelled"]


class TrainingError(InputError):
    """A training that cannot go on; nothing has been changed by it."""


@dataclass(frozen=True)
class Progress:
    """A training after `step` of `steps`. Losses in nats a token; `held_out` is the last measured perplexity."""

    step: int
    steps: int
    loss: float
    held_out: float
    before: float
    """Held-out perplexity before the first step."""
    tokens_per_second: float
    seconds_left: float
    memory_bytes: int
    """Of this process."""
    history: tuple[dict[str, Any], ...]
    """One entry a step: `step`, `loss`, and `held_out` (a perplexity) where it was measured."""

    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "history": list(self.history)}


@dataclass(frozen=True)
class Outcome:
    """How a training ended. The student holds the best state."""

    ending: Ending
    steps: int
    """That were taken."""
    best_step: int
    before: float
    """Held-out perplexities: before, and of the best state."""
    after: float
    tokens_per_second: float
    seconds: float
    history: tuple[dict[str, Any], ...]


def rate(step: int, steps: int, peak: float, warm_up: float) -> float:
    """Learning rate of a step (from 0): linear up to `peak` in the share `warm_up` of the steps, then a cosine that
    would reach 0 at `steps`."""
    rising = round(warm_up * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def order_of(count: int, first: int, number: int, seed: int) -> list[int]:
    """Windows number `first` to `first + number` of an endless row of shuffled passes over `count` windows."""
    passes: dict[int, list[int]] = {}
    found = []
    for place in range(first, first + number):
        epoch, within = divmod(place, count)
        if epoch not in passes:
            generator = generator_for(seed, "healing order", epoch)
            passes[epoch] = torch.randperm(count, generator=generator).tolist()
        found.append(passes[epoch][within])
    return found


class Trainer:
    """Trains a student.

    Args:
        held_out: windows that decide which state is the best.
        key: address of the healing, for its checkpoint.
        folder: for checkpoints; none are kept when None.
    """

    def __init__(
        self,
        student: Student,
        material: PlainText,
        held_out: HealingText,
        edit: Heal,
        key: str = "",
        processes: Processes | None = None,
        folder: Path | None = None,
    ) -> None:
        self.student, self.material, self.held_out, self.edit = student, material, held_out, edit
        self.processes = processes or Processes()
        self.folder = folder
        self.optimiser = torch.optim.AdamW(
            student.parameters, lr=edit.learning_rate, weight_decay=edit.weight_decay, fused=True
        )
        known = checkpoints.load(folder, key) if folder is not None else None
        self.state = known or TrainingState(key)
        if known is not None:
            self._resume(known)

    def run(self, publish: Callable[[Progress], None] = lambda progress: None, stop: Event | None = None) -> Outcome:
        """Train to the end, or until the state no longer improves, or until `stop` is set.

        Raises:
            TrainingError: the loss is no longer a number, or memory is short.
        """
        begun = time.perf_counter()
        try:
            return self._run(publish, stop or Event(), begun)
        except (MemoryError, RuntimeError) as error:
            if out_of_memory(error):
                raise _short_of_memory() from None
            raise

    def _run(self, publish: Callable[[Progress], None], stop: Event, begun: float) -> Outcome:
        state, edit = self.state, self.edit
        if state.before is None:
            state.before = self.evaluate()
            self._keep(state.before)
        ending: Ending = "steps"
        saved = time.perf_counter()
        last = state.before
        while state.step < edit.steps:
            taken = self.take_step(stop)
            if not taken:
                ending = "cancelled"
            if taken and state.step % edit.evaluate_every and state.step < edit.steps:
                self._publish(publish, stop, last)
            else:
                last = self.evaluate()
                if state.history:
                    state.history[-1]["held_out"] = perplexity_of(last)
                self._keep(last)
                if taken:
                    self._publish(publish, stop, last)
            if not taken:
                break
            if edit.patience is not None and state.worse >= edit.patience:
                ending = "patience"
                break
            if self.folder is not None and time.perf_counter() - saved > CHECKPOINT_SECONDS:
                self.checkpoint()
                saved = time.perf_counter()
        self.student.restore(state.best)
        return Outcome(
            ending,
            state.step,
            state.best_step,
            perplexity_of(state.before),
            perplexity_of(state.best_nll),
            self.speed,
            time.perf_counter() - begun,
            tuple(state.history),
        )

    @property
    def speed(self) -> float:
        """Tokens a second of the training steps so far."""
        return self.state.tokens / self.state.seconds if self.state.seconds else 0.0

    def seconds_a_step(self, steps: int = 2) -> float:
        """Measured time of a step without taking one, after one to warm up."""
        times = []
        for place in range(steps + 1):
            begun = time.perf_counter()
            self._gradients(self._micro_batches(place), None)
            times.append(time.perf_counter() - begun)
            self.optimiser.zero_grad()
        return self.processes.from_main(min(times[1:]))

    def _micro_batches(self, step: int) -> list[list[int]]:
        edit = self.edit
        indices = order_of(self.material.count, step * edit.batch, edit.batch, edit.seed)
        return [indices[start : start + edit.micro_batch] for start in range(0, edit.batch, edit.micro_batch)]

    def take_step(self, stop: Event) -> bool:
        """One step of the optimiser; False where `stop` was set in any process before it was complete."""
        state, edit = self.state, self.edit
        begun = time.perf_counter()
        micro = self._micro_batches(state.step)
        loss, stopped = self._gradients(micro, stop)
        if stopped:
            self.optimiser.zero_grad()
            return False
        if edit.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.student.parameters, edit.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = rate(state.step, edit.steps, edit.learning_rate, edit.warm_up)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.student.refresh()
        state.step += 1
        state.seconds += time.perf_counter() - begun
        state.tokens += sum(self.material.batch(indices).ids.numel() for indices in micro)
        state.history.append({"step": state.step, "loss": loss})
        return True

    def _gradients(self, micro: Sequence[Sequence[int]], stop: Event | None) -> tuple[float, bool]:
        """Gradients of the mean loss of a step's windows, summed over processes.

        Returns:
            The loss, and whether the step was stopped.

        Raises:
            TrainingError: the loss is not a number.
        """
        processes, parameters = self.processes, self.student.parameters
        tokens = sum(self.material.tokens(indices) for indices in micro)
        loss, stopped = 0.0, False
        for place in range(processes.index, len(micro), processes.count):
            stopped = stop is not None and stop.is_set()
            if stopped:
                break
            if self.edit.dropout:
                self.student.masks(generator_for(self.edit.seed, f"dropout {place}", self.state.step))
            loss += self._accumulate(self.material.batch(micro[place]), max(tokens, 1))
        self.student.masks(None)
        if processes.count > 1:
            zeros = (torch.zeros_like(parameter).flatten() for parameter in parameters)
            own = [zero if p.grad is None else p.grad.flatten() for p, zero in zip(parameters, zeros, strict=True)]
            flat = processes.sum(torch.cat([*own, torch.tensor([loss, float(stopped)], device=own[0].device)]))
            loss, stopped = float(flat[-2]), bool(flat[-1] > 0)
            parts = flat[:-2].split([parameter.numel() for parameter in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter).clone()
        if not stopped and not math.isfinite(loss):
            raise TrainingError(
                f"The training's loss is no longer a number after {self.state.step} steps: choose a lower learning "
                "rate. The recipe is as it was."
            )
        return loss, stopped

    def _accumulate(self, batch: Batch, tokens: int) -> float:
        """Add the gradients of one micro-batch; its share of the mean loss over `tokens`."""
        student, material = self.student, self.material
        states: list[torch.Tensor] | None = [] if material.wants_states() else None
        with torch.enable_grad():
            normalised = student.normalised(batch.ids, batch.keys, states)
        scored = batch.scored.to(normalised.device)
        inputs = normalised.detach()[:, :-1][scored]
        loss, slope = loss_and_gradient(student.head, inputs, material.objective(batch), student.scratch)
        gradient = torch.zeros_like(normalised)
        gradient[:, :-1][scored] = (slope / tokens).to(gradient.device, gradient.dtype)
        ends, slopes = [normalised], [gradient]
        if states is not None:
            sources = [spec.source for spec in student.kept[student.first :]]
            with torch.enable_grad():
                extra = material.features(batch, states, sources)
            if extra is not None:
                share = material.tokens(batch.indices) / tokens
                ends.append(extra)
                slopes.append(torch.full_like(extra, share))
                loss += float(extra.detach()) * share * tokens
        torch.autograd.backward(ends, slopes)
        return loss / tokens

    def evaluate(self) -> float:
        """Mean held-out loss; windows are spread over the processes."""
        windows, learnt = self.held_out.windows, self.held_out.learnt
        total = torch.zeros(2, dtype=torch.float64)
        for index in range(self.processes.index, windows.count, self.processes.count):
            losses = self.student.losses(windows.ids[index : index + 1], [f"held out {index}"])
            scored = learnt[index : index + 1, 1:]
            total += torch.tensor([float(losses[scored].double().sum()), float(scored.sum())], dtype=torch.float64)
        summed = self.processes.sum(total)
        nll = float(summed[0] / summed[1].clamp(min=1))
        return nll if math.isfinite(nll) else math.inf

    def _keep(self, nll: float) -> None:
        """Remember the state if none was better."""
        state = self.state
        if nll < state.best_nll or not state.best:
            state.best, state.best_step, state.best_nll, state.worse = self.student.tensors(), state.step, nll, 0
        else:
            state.worse += 1

    def _publish(self, publish: Callable[[Progress], None], stop: Event, held_out: float) -> None:
        state, edit = self.state, self.edit
        left = (edit.steps - state.step) * state.seconds / max(state.step, 1)
        progress = Progress(
            state.step, edit.steps, state.history[-1]["loss"], perplexity_of(held_out),
            perplexity_of(state.before or 0.0), self.speed, left, psutil.Process().memory_info().rss,
            tuple(dict(entry) for entry in state.history),
        )  # fmt: skip
        try:
            publish(progress)
        except Cancelled:  # a job's report raises once it is to stop: what was gained is kept
            stop.set()

    def checkpoint(self) -> None:
        """Write the state, so that a training that was cut off can go on."""
        if self.folder is None or not self.processes.main:
            return
        state, parameters = self.state, self.student.parameters
        state.tensors = self.student.tensors()
        known = [self.optimiser.state[parameter] for parameter in parameters]
        state.means = [entry["exp_avg"] for entry in known if entry]
        state.squares = [entry["exp_avg_sq"] for entry in known if entry]
        checkpoints.save(state, self.folder)

    def _resume(self, state: TrainingState) -> None:
        self.student.restore(state.tensors)
        for parameter, mean, square in zip(self.student.parameters, state.means, state.squares, strict=False):
            device = parameter.device
            step = torch.tensor(float(state.step), device=device)
            known = {"step": step, "exp_avg": mean.to(device), "exp_avg_sq": square.to(device)}
            self.optimiser.state[parameter] = known


def _short_of_memory() -> TrainingError:
    return TrainingError(
        "There is not enough memory to train: use shorter windows, a smaller micro-batch, fewer blocks or "
        "checkpointing. The recipe is as it was."
    )
