"""Numbers that say whether a denoiser learns: validation loss, and whether it hears the condition.

Axis legend: B instances, A attributes, K conditions, F = C*T, X Y Z latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fmrisynth.data.attributes import Vocabulary, n_labels
from fmrisynth.diffusion.objectives import Objective
from fmrisynth.models.distributed import World
from fmrisynth.train.batches import LatentSource, derive_seed, starts
from fmrisynth.train.moments import ClassMoments

N_BINS = 5  # noise levels reported separately, from clean to noisy


class Validation:
    """Loss on fixed instances with fixed noise and times: the same numbers for the same weights.

    Parameters
    ----------
    instances : sequence of int
        The validation split; the first ``n`` after a fixed shuffle are used.
    moments : callable
        Gives the moments of the training latents; called when first needed.
    """

    def __init__(
        self,
        source: LatentSource,
        instances: Sequence[int],
        vocabulary: Vocabulary,
        objective: Objective,
        moments: Callable[[], ClassMoments] | None,
        *,
        n: int,
        seed: int,
        batch_size: int,
    ) -> None:
        null = n_labels(vocabulary)[0]
        known = [i for i in instances if source.labels(i, vocabulary)[0] != null]  # conditions seen in training
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(derive_seed("val", seed)))
        self.instances = [known[i] for i in order[:n].tolist()]
        self.source, self.vocabulary, self.objective, self.moments = source, vocabulary, objective, moments
        self.brain_share = float(source.brain_XYZ.float().mean())
        self.seed, self.batch_size = seed, batch_size
        spread = torch.randperm(len(self.instances), generator=torch.Generator().manual_seed(derive_seed("time", seed)))
        self.uniform = (spread.double() + 0.5) / max(1, len(self.instances))

    @torch.no_grad()
    def run(self, network: nn.Module, world: World, autocast: AbstractContextManager[Any]) -> dict[str, Any]:
        """Evaluate.

        Returns
        -------
        dict
            ``loss``: mean over the instances; ``loss_by_noise``: from clean to noisy, fifths of the time axis;
            ``condition_gain``: mean increase of the loss when the label, or what happens in a run, is replaced by a wrong one (positive
            when the network uses the condition); ``condition_gain_noisiest``: in the noisiest fifth; ``condition_gain_share``: that
            as a share of what is attainable there (`ClassMoments.attainable_gain`; labels only).
        """
        n_conditions = n_labels(self.vocabulary)[0]
        moments = (
            self.moments() if self.moments is not None and n_conditions > 1 else None
        )  # every rank takes part in reading
        # Columns: loss, loss with a wrong label, count; gain and attainable gain in the noisiest bin; then per bin: loss, count.
        totals = torch.zeros(5 + 2 * N_BINS, dtype=torch.float64)
        n_rounds = -(-len(self.instances) // (self.batch_size * world.size))
        for i_round in range(n_rounds):  # every rank runs as many forward passes, as FSDP demands
            first = (i_round * world.size + world.rank) * self.batch_size
            chosen = list(range(first, min(first + self.batch_size, len(self.instances))))
            real = len(chosen)
            chosen = chosen or [0]
            clean, noise, labels = [], [], []
            for i in chosen:
                stack = self.source.read(self.instances[i])
                clean.append(stack)
                generator = torch.Generator().manual_seed(derive_seed("val-noise", self.seed, i))
                noise.append(torch.randn(stack.shape, generator=generator) * self.source.brain_XYZ)
                labels.append(self.source.labels(self.instances[i], self.vocabulary))
            labels_BA = torch.tensor(labels)
            clean_B, noise_B = torch.stack(clean).to(world.device), torch.stack(noise).to(world.device)
            time_B = self.objective.draw_time(self.uniform[chosen])
            wrong_BA = labels_BA.clone()
            told, wrongly_told = self._told(chosen), self._told(chosen)
            if told:  # a run: the events of a window far away in the list, and what was before left as it is
                other = [(i + len(self.instances) // 2) % len(self.instances) for i in chosen]
                wrongly_told = [self._told(other)[0], *told[1:]]
            elif n_conditions > 1:
                step = 1 + torch.tensor(chosen) % (n_conditions - 1)
                wrong_BA[:, 0] = (wrong_BA[:, 0] + step) % n_conditions
            start_B = starts(self.source, [self.instances[i] for i in chosen])
            start_B = None if start_B is None else start_B.to(world.device)
            noisy_B = self.objective.add_noise(clean_B, noise_B, time_B, start_B)
            told_B = self.objective.path.network_time(time_B).float().to(world.device)
            losses: list[Tensor] = []
            for inputs in ((labels_BA, *told), (wrong_BA, *wrongly_told)):
                with autocast:
                    prediction = network(noisy_B, told_B, *(part.to(world.device) for part in inputs))
                prediction = self.objective.answer(prediction, noisy_B, time_B)
                loss_B = self.objective.loss(prediction, clean_B, noise_B, time_B, start_B) / self.brain_share
                losses.append(loss_B.double().cpu()[:real])
            right_B, wrong_B = losses
            totals[:3] += torch.tensor([right_B.sum(), wrong_B.sum(), real], dtype=torch.float64)
            bins = (self.uniform[chosen][:real] * N_BINS).long()
            noisiest = bins == N_BINS - 1
            totals[3] += (wrong_B - right_B)[noisiest].sum()
            if moments is not None and bool(noisiest.any()):
                pair = (labels_BA[:real, 0][noisiest].long(), wrong_BA[:real, 0][noisiest].long())
                best_B = moments.attainable_gain(self.objective, time_B[:real][noisiest], *pair)
                totals[4] += best_B.sum() / self.brain_share
            totals[5 : 5 + N_BINS].index_add_(0, bins, right_B)
            totals[5 + N_BINS :].index_add_(0, bins, torch.ones(real, dtype=torch.float64))
        world.sum(totals)
        count = totals[2].clamp_min(1)
        by_noise = (totals[5 : 5 + N_BINS] / totals[5 + N_BINS :]).tolist()
        return {
            "loss": float(totals[0] / count),
            "loss_by_noise": [None if value != value else value for value in by_noise],
            "condition_gain": float((totals[1] - totals[0]) / count),
            "condition_gain_share": float(totals[3] / totals[4]) if totals[4] > 0 else None,
            "condition_gain_noisiest": float(totals[3] / totals[-1].clamp_min(1)) if n_conditions > 1 else None,
        }

    def _told(self, chosen: Sequence[int]) -> list[Tensor]:
        """What the network is told beside labels, nothing withheld."""
        parts = [self.source.told(self.instances[i], None) for i in chosen]
        return [torch.stack(part) for part in zip(*parts, strict=True)]


def effect_correlation(sample_mean_KFXYZ: Tensor, training_mean_KFXYZ: Tensor) -> float:
    """Mean over conditions of the correlation between two sets of effect maps.

    An effect map is a condition's mean latent minus the mean over conditions.
    """
    sample, training = (m.double().flatten(1) for m in (sample_mean_KFXYZ, training_mean_KFXYZ))
    sample, training = sample - sample.mean(0), training - training.mean(0)
    sample, training = sample - sample.mean(1, keepdim=True), training - training.mean(1, keepdim=True)
    return float(torch.cosine_similarity(sample, training, dim=1).mean())
