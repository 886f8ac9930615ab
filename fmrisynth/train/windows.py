"""The training stage's view of whole runs: windows at any offset, what happens in and before them, and the frames before.

Axis legend: C latent channels, T frames of a window, P frames before it, F = C*T, G = C*P + 1, S frames of which events are told,
K conditions, X Y Z latent grid.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fmrisynth.config.train import ConditioningConfig, EventTelling
from fmrisynth.data.attributes import Values, Vocabulary
from fmrisynth.data.latents import LatentRow, read_run_events
from fmrisynth.data.occupancy import occupancy, read_descriptors, window_occupancy
from fmrisynth.diffusion.rollout import past_channels
from fmrisynth.errors import FmrisynthError
from fmrisynth.progress import log
from fmrisynth.train.dataset import TrainingLatents


class TrainingWindows(TrainingLatents):
    """Windows of the runs of a latents directory by number: every offset of every run is an instance.

    Parameters
    ----------
    root : Path
        Output of `tokenize`, from a dataset of whole runs.
    config : ConditioningConfig
        How far back events are told, and how many frames are seen.
    leave_out : sequence of str
        People who are not read.
    """

    telling: EventTelling

    def __init__(self, root: Path, config: ConditioningConfig, leave_out: Sequence[str] = ()) -> None:
        super().__init__(root, leave_out)
        rows = self.dataset.rows
        if not all(row.n_frames for row in rows):
            raise FmrisynthError(
                f"{self.root}: expected latents of whole runs for conditioning.kind events, found blocks; make them with "
                "`fmrisynth prepare --unit run` and `fmrisynth tokenize`."
            )
        if len({row.tr_s for row in rows}) > 1:
            raise FmrisynthError(
                f"{self.root}: expected runs of one repetition time, found several; prepare them with one tr_s."
            )
        self.config, self.tr_s = config, rows[0].tr_s
        n_channels, self.n_frames = self.latent_shape[:2]
        counts = [max(0, row.n_frames - self.n_frames + 1) for row in rows]
        self._starts = [sum(counts[:number]) for number in range(len(counts) + 1)]
        events = {subject: read_run_events(self.root, subject) for subject in self.dataset.subjects}
        self._events = [events[row.subject].get(row.row, ()) for row in rows]
        trained = [number for number, row in enumerate(rows) if row.split == "train"]
        self.conditions = sorted({event.label for number in trained for event in self._events[number]})
        if not self.conditions:
            raise FmrisynthError(
                f"{self.root}: expected events in the training runs, found none; check the events files."
            )
        self.telling = EventTelling(
            window_frames=self.n_frames,
            history_frames=math.ceil(config.history_s / self.tr_s),
            past_frames=config.past_frames,
            past_channels=config.past_frames * n_channels + 1 if config.past_frames else 0,
            grid=self.latent_shape[2:],
            descriptors=None if config.descriptors is None else self._descriptors(config.descriptors),
        )
        if self.telling.descriptors is not None:  # a run that goes on must go on with the same
            self.digest = hashlib.sha256(f"{self.digest} {self.telling.descriptors}".encode()).hexdigest()
        self._lenders = [number for number in trained if rows[number].n_frames >= config.past_frames]
        unheard = {event.label for events in self._events for event in events} - set(self.conditions)
        if unheard:
            log.warning(
                "%s: no training run has %s, so the network does not hear it.", self.root, ", ".join(sorted(unheard))
            )

    def _descriptors(self, path: Path) -> tuple[tuple[float, ...], ...]:
        table = read_descriptors(path)
        missing = [condition for condition in self.conditions if condition not in table]
        if missing:
            raise FmrisynthError(
                f"{path}: expected a row for {missing[0]!r}, which occurs in the training runs; add it."
            )
        return tuple(table[condition] for condition in self.conditions)

    @cached_property
    def _occupancy(self) -> list[Tensor]:
        """Events of each run as (frames, K)."""
        return [
            torch.from_numpy(
                occupancy([e for e in events if e.label in self.conditions], self.conditions, row.n_frames, self.tr_s)
            )
            for row, events in zip(self.dataset.rows, self._events, strict=True)
        ]

    def occupancy_of(self, run: int) -> Tensor:
        """Share of each frame of a run during which each condition is on, (frames, K)."""
        return self._occupancy[run]

    def place(self, instance: int) -> tuple[int, int]:
        """Number of the run, and first frame."""
        number = bisect_right(self._starts, instance) - 1
        return number, instance - self._starts[number]

    def select(self, split: str) -> list[int]:
        """Numbers of the windows of one split."""
        return [
            instance
            for number, row in enumerate(self.dataset.rows)
            if row.split == split
            for instance in range(self._starts[number], self._starts[number + 1])
        ]

    def read(self, instance: int) -> Tensor:
        """As `TrainingLatents.read`, of one window."""
        run, first = self.place(instance)
        stack_FXYZ = self.dataset.standardise(self.dataset.load_frames(run, first, self.n_frames)).flatten(0, 1)
        if self.whitening is not None:
            stack_FXYZ = self.whitening.apply(stack_FXYZ)
        return stack_FXYZ * self.brain_XYZ

    def told(self, instance: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Events in and before the window (S, K), and the frames before it (G, X, Y, Z).

        Zeros stand at the start of a run, and where the generator withholds them. Without a generator, as in validation, nothing is
        withheld or added.

        In training a part of other people's frames is added to a person's. A network that is shown its own last window takes the errors
        in it for the past and may add to them until the run is far from all others. White noise (Sanchez-Gonzalez et al. 2020,
        arXiv:2002.09405; Valevski et al. 2024, arXiv:2408.14837) hides small errors, and not a slow pattern that fills the brain,
        which a network finds in any white noise. Frames of other people hide all that people differ in, as much as they differ in it.
        """
        run, first = self.place(instance)
        telling = self.telling
        on_TK = self.occupancy_of(run).numpy()
        events_SK = torch.from_numpy(window_occupancy(on_TK, first, self.n_frames, telling.history_frames))
        if not telling.past_frames:
            return (events_SK,)
        withheld = generator is not None and float(torch.rand((), generator=generator)) < self.config.past_dropout
        past_CPXYZ = None
        if first >= telling.past_frames and not withheld:
            frames = self.dataset.load_frames(run, first - telling.past_frames, telling.past_frames)
            past_CPXYZ = self.dataset.standardise(frames)
            if generator is not None and self.config.past_noise:
                past_CPXYZ = past_CPXYZ + self.config.past_noise * self._frames_of_anybody(generator)
        scale_CXYZ = None if self.whitening is None else self.whitening.scale_CXYZ
        return events_SK, past_channels(past_CPXYZ, telling, self.brain_XYZ, scale_CXYZ)

    def _frames_of_anybody(self, generator: torch.Generator) -> Tensor:
        """As many frames as are shown, from anywhere in all training runs, (C, P, X, Y, Z)."""
        run = self._lenders[int(torch.randint(len(self._lenders), (), generator=generator))]
        n_frames = self.telling.past_frames
        first = int(torch.randint(self.dataset.rows[run].n_frames - n_frames + 1, (), generator=generator))
        return self.dataset.standardise(self.dataset.load_frames(run, first, n_frames))

    def row(self, instance: int) -> LatentRow:
        """The run that a window is of."""
        return self.dataset.rows[self.place(instance)[0]]

    def vocabulary(
        self, instances: Sequence[int], names: Sequence[str], numbers: Collection[str] = ()
    ) -> dict[str, Values]:
        """As `TrainingLatents.vocabulary`; the conditions are those of the training runs' events."""
        firsts = [self._starts[run] for run in sorted({self.place(instance)[0] for instance in instances})]
        others = super().vocabulary(firsts, [name for name in names if name != "condition"], numbers)
        return {"condition": self.conditions} | others

    def labels(self, instance: int, vocabulary: Vocabulary) -> list[int | float]:
        """As `TrainingLatents.labels`; the first is 0, events are told."""
        return [
            0,
            *super().labels(instance, {name: values for name, values in vocabulary.items() if name != "condition"}),
        ]

    def timing(self, instances: Sequence[int]) -> dict[str, dict[str, float]]:
        """Events come from the user: nothing to remember."""
        return {}

    def amounts(self, instances: Sequence[int]) -> dict[str, int]:
        """How many runs and people some windows are of."""
        return super().amounts(
            [self._starts[run] for run in sorted({self.place(instance)[0] for instance in instances})]
        )

    def describe(self, instance: int) -> str:
        """Where a window lies, for messages."""
        _, first = self.place(instance)
        row = self.row(instance)
        return f"sub-{row.subject} run {row.row}, frames from {first}"
