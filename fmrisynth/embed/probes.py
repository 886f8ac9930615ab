"""What frozen features tell of states and traits, on people that no probe has seen, beside baselines.

A *state* changes within a person (the condition of a series), a *trait* does not (a column of ``participants.tsv``). Folds hold whole
people; for the task of naming the person they hold whole source runs instead.

Axis legend: N series or people, D features, T frames, P valid pixels, R parcels, M patches, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fmrisynth.bids.sources import read_participants
from fmrisynth.config.embed import ProbeConfig
from fmrisynth.embed.encoder import Encoder, untrained
from fmrisynth.embed.flatmap import FlatMap
from fmrisynth.embed.maps import FlatMaps
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.models.vit import initialise
from fmrisynth.progress import track

LINEAR = "encoder, linear"
"""A ridge probe of the tokens of all places: maps are of one sheet, so where something happens tells as much as what."""

STATES = ("condition", "subject")
"""What is known of every series; all else is a column of ``participants.tsv``."""

MAX_CLASSES = 10
"""A numeric column with more different values (or with one for every second person) is predicted as a number."""

RIDGE_STRENGTHS = tuple(10.0 ** np.arange(-2, 7))


@dataclass(frozen=True)
class Result:
    """How well one way of looking tells one thing.

    Attributes
    ----------
    target, features : str
        What is told, from what.
    measure : {"balanced accuracy", "correlation"}
    value, low, high : float
        With a 95 % bootstrap interval over people.
    chance : float
    n, n_people : int
    gain, gain_low, gain_high : float or None
        Of the encoder's linear probe over these features, on the same bootstrap samples.
    """

    target: str
    features: str
    measure: str
    value: float
    low: float
    high: float
    chance: float
    n: int
    n_people: int
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def line(self) -> str:
        """In words."""
        interval = f"[{self.low:.3f}, {self.high:.3f}]"
        text = (
            f"{self.target} from {self.features}: {self.measure} {self.value:.3f} {interval}, chance {self.chance:.3f}"
        )
        if self.gain is not None:
            text += f"; encoder better by {self.gain:+.3f} [{self.gain_low:+.3f}, {self.gain_high:+.3f}]"
        return text


@dataclass(frozen=True)
class Looks:
    """Everything a probe may look at, series by series.

    Attributes
    ----------
    tokens_NMD, random_NMD : array, float16
        Tokens of the places of the trained and of the untrained encoder, see `Encoder.places`.
    parcels : list of arrays (T, R)
        Mean of the maps in parcels, of whole series.
    n_frames : int
        Of a clip.
    """

    tokens_NMD: np.ndarray
    random_NMD: np.ndarray
    parcels: list[np.ndarray]
    n_frames: int

    @property
    def series_ND(self) -> np.ndarray:
        """Series of the parcels, the mean over the clips that follow each other, as tokens are."""
        n = self.n_frames
        return np.stack([s[: len(s) // n * n].reshape(-1, n * s.shape[1]).mean(axis=0) for s in self.parcels])

    def of(self, kept_N: np.ndarray) -> Looks:
        """At some of the series."""
        parcels = [series for series, keep in zip(self.parcels, kept_N, strict=True) if keep]
        return Looks(self.tokens_NMD[kept_N], self.random_NMD[kept_N], parcels, self.n_frames)


def parcellation(picture: FlatMap, n: int) -> np.ndarray:
    """Parcel of each valid pixel, int (P,): compact parts of equal size of each hemisphere (k-means of the pixels' places)."""
    from sklearn.cluster import KMeans

    rows, columns = np.nonzero(picture.valid_HW)
    middle = np.flatnonzero(~picture.valid_HW.any(axis=0))
    side = columns > (middle.mean() if middle.size else picture.shape[1] / 2)
    label_P = np.zeros(len(rows), dtype=int)
    for i in (0, 1):
        places = np.column_stack([rows, columns])[side == i]
        label_P[side == i] = i * (n // 2) + KMeans(n // 2, n_init=1, max_iter=50, random_state=0).fit_predict(places)
    return label_P


def flat(tokens_NMD: np.ndarray) -> np.ndarray:
    """Tokens of all places beside each other, (N, M * D) float32."""
    return tokens_NMD.reshape(len(tokens_NMD), -1).astype(np.float32)


def mean(tokens_NMD: np.ndarray) -> np.ndarray:
    """The mean token, (N, D) float32."""
    return tokens_NMD.mean(axis=1, dtype=np.float32)


def look(maps: FlatMaps, encoder: Encoder, tokens_NMD: np.ndarray, config: ProbeConfig, seed: int) -> Looks:
    """Look at every series in all ways; what the encoder makes of them is given."""
    label_P = parcellation(maps.picture, config.parcels)
    average_PR = np.eye(int(label_P.max()) + 1, dtype=np.float32)[label_P] / np.bincount(label_P)
    chosen = range(len(maps.rows))
    parcels = [maps.read(i, None) @ average_PR for i in chosen]
    series = (maps.read(i, None) for i in track(chosen, "Untrained encoder", len(chosen)))
    random_NMD = np.stack([tokens_MD.astype(np.float16) for tokens_MD in untrained(encoder, seed).places(series)])
    return Looks(tokens_NMD, random_NMD, parcels, maps.config.n_frames)


def connectome(series_TR: np.ndarray) -> np.ndarray:
    """Fisher's z of the correlations between parcels, the upper triangle."""
    correlation_RR = np.corrcoef(series_TR.T)
    upper = np.triu_indices(len(correlation_RR), 1)
    return np.arctanh(np.clip(np.nan_to_num(correlation_RR[upper]), -0.999, 0.999))


def probe(
    maps: FlatMaps,
    encoder: Encoder,
    tokens_NMD: np.ndarray,
    dataset: Path,
    names: Sequence[str],
    config: ProbeConfig,
    seed: int,
) -> list[Result]:
    """Tell each target from each kind of features.

    Parameters
    ----------
    maps : FlatMaps
    encoder : Encoder
    tokens_NMD : array
        What it makes of the series, see `Encoder.places`.
    dataset : Path
        Whose ``participants.tsv`` holds the traits.
    names : sequence of str
        ``condition``, ``subject`` or a column of that table.
    config : ProbeConfig
    seed : int
    """
    people = np.array([row.subject for row in maps.rows])
    traits = read_participants(dataset)
    targets = {name: _target(name, maps, traits) for name in names}
    seen = look(maps, encoder, tokens_NMD, config, seed)
    results = []
    for name, (value_N, is_trait) in targets.items():
        kept = np.array([v is not None for v in value_N])
        rows = [row for row, keep in zip(maps.rows, kept, strict=True) if keep]
        looks = seen.of(kept)
        told = np.array([v for v in value_N if v is not None])
        own = people[kept]
        if is_trait:
            results += _trait(name, told, own, looks, config, seed)
        else:
            groups = np.array([r.source or r.filename for r in rows]) if name == "subject" else own
            results += _state(name, told, own, groups, looks, config, seed)
    return results


def check_targets(dataset: Path, names: Sequence[str], n_people: int, config: ProbeConfig) -> None:
    """Refuse what is neither a state nor a column of ``participants.tsv``, and too few people, before any work is done."""
    if n_people < config.folds:
        raise FmrisynthError(
            f"{dataset}: expected {config.folds} subjects or more for probes in {config.folds} folds, found {n_people}; add subjects, "
            "or lower probe.folds."
        )
    columns = sorted({key for row in read_participants(dataset).values() for key in row} - {"participant_id"})
    for name in names:
        if name not in (*STATES, *columns):
            raise UsageError(
                f"--probe {name}: expected {', '.join(STATES)} or a column of {dataset / 'participants.tsv'}, which has "
                f"{', '.join(columns) or 'none'}."
            )


def _target(name: str, maps: FlatMaps, traits: dict[str, dict[str, str]]) -> tuple[list[str | None], bool]:
    """The value of every series, None where it is not known, and whether it is a trait."""
    if name in STATES:
        return [getattr(row, name) for row in maps.rows], False
    cells = [traits.get(row.subject, {}).get(name) for row in maps.rows]
    return [None if cell in (None, "", "n/a") else cell for cell in cells], True


def _state(
    name: str,
    label_N: np.ndarray,
    people_N: np.ndarray,
    groups_N: np.ndarray,
    looks: Looks,
    config: ProbeConfig,
    seed: int,
) -> list[Result]:
    """Classes of single series."""
    classes, y = np.unique(label_N, return_inverse=True)
    _check_classes(name, y, groups_N, config)
    folds = _folds(y, groups_N, config, seed)
    ways: dict[str, Callable[[], np.ndarray]] = {
        LINEAR: lambda: _crossed(flat(looks.tokens_NMD), y, folds, ridge_classes),
        "encoder, mean token, linear": lambda: _crossed(mean(looks.tokens_NMD), y, folds, ridge_classes),
        "untrained encoder, linear": lambda: _crossed(flat(looks.random_NMD), y, folds, ridge_classes),
        "parcel series, MLP": lambda: _crossed(looks.series_ND, y, folds, _mlp),
        "parcel series, linear": lambda: _crossed(looks.series_ND, y, folds, ridge_classes),
        "connectome, ridge": lambda: _crossed(
            np.stack([connectome(s) for s in looks.parcels]), y, folds, ridge_classes
        ),
    }
    if config.attentive:
        ways["encoder, attentive"] = lambda: _attentive(looks.tokens_NMD, y, folds, seed)
    answers = {way: answer() for way, answer in ways.items()}
    return _judge(name, answers, y, people_N, "balanced accuracy", 1 / len(classes), config, seed)


def _trait(
    name: str, told_N: np.ndarray, people_N: np.ndarray, looks: Looks, config: ProbeConfig, seed: int
) -> list[Result]:
    """Classes or numbers of people; a person is the mean of their series."""
    people, first, of_person = np.unique(people_N, return_index=True, return_inverse=True)
    values = told_N[first]
    mean_of = np.eye(len(people))[of_person] / np.bincount(of_person)
    own = [[looks.parcels[j] for j in np.flatnonzero(of_person == i)] for i in range(len(people))]
    features = {
        LINEAR: mean_of.T @ flat(looks.tokens_NMD),
        "encoder, mean token, linear": mean_of.T @ mean(looks.tokens_NMD),
        "untrained encoder, linear": mean_of.T @ flat(looks.random_NMD),
        "parcel series, linear": mean_of.T @ looks.series_ND,
        "connectome, ridge": np.stack([connectome(np.concatenate(series)) for series in own]),
    }
    numbers = as_numbers(values)
    if numbers is not None and len(set(numbers)) > min(MAX_CLASSES, len(people) / 2):
        folds = _folds(np.zeros(len(people), int), people, config, seed)
        answers = {way: _crossed(x, numbers, folds, ridge_numbers) for way, x in features.items()}
        return _judge(name, answers, numbers, people, "correlation", 0.0, config, seed)
    classes, y = np.unique(values, return_inverse=True)
    _check_classes(name, y, people, config)
    folds = _folds(y, people, config, seed)
    answers = {way: _crossed(x, y, folds, ridge_classes) for way, x in features.items()}
    return _judge(name, answers, y, people, "balanced accuracy", 1 / len(classes), config, seed)


def _check_classes(name: str, y: np.ndarray, groups: np.ndarray, config: ProbeConfig) -> None:
    counts = [len(set(groups[y == c])) for c in range(int(y.max()) + 1)]
    if len(counts) < 2 or min(counts) < 2:
        raise FmrisynthError(
            f"--probe {name}: expected two classes or more, each in two groups of a fold or more, found {len(counts)} with "
            f"{min(counts)} at least; leave this target out or add data."
        )


def as_numbers(values: np.ndarray) -> np.ndarray | None:
    """Texts as numbers; None if one is none."""
    try:
        return values.astype(float)
    except ValueError:
        return None


def _folds(y: np.ndarray, groups: np.ndarray, config: ProbeConfig, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedGroupKFold

    n = min(config.folds, len(set(groups)))
    return list(StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(np.zeros(len(y)), y, groups))


Fit = Callable[[np.ndarray, np.ndarray], Any]


def _crossed(x_ND: np.ndarray, y: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], fit: Fit) -> np.ndarray:
    """Answers for every row by a probe that has not seen its group."""
    answer = np.zeros(len(y), dtype=y.dtype)
    for train, test in folds:
        answer[test] = fit(x_ND[train], y[train]).predict(x_ND[test])
    return answer


def ridge_classes(x_ND: np.ndarray, y: np.ndarray) -> Any:
    """A ridge classifier of standardised features, its strength by leave-one-out."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeClassifierCV(RIDGE_STRENGTHS, class_weight="balanced")).fit(x_ND, y)


def ridge_numbers(x_ND: np.ndarray, y: np.ndarray) -> Any:
    """Ridge regression on standardised features, its strength by leave-one-out."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(RIDGE_STRENGTHS)).fit(x_ND, y)


def _mlp(x_ND: np.ndarray, y: np.ndarray) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((128,), alpha=1e-2, max_iter=40, early_stopping=len(y) > 200, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as many passes as are wanted
        return make_pipeline(StandardScaler(), network).fit(x_ND, y)


class AttentivePool(nn.Module):
    """One learned question to all tokens, and a linear answer.

    Attention with a single query: query times key matrix is one vector per head, and the values of a weighted mean are the weighted mean of
    the values, so tokens need not be projected one by one.
    """

    def __init__(self, width: int, n_classes: int, heads: int) -> None:
        super().__init__()
        self.question = nn.Linear(width, heads, bias=False)
        self.value = nn.Parameter(torch.randn(heads, width, width // heads) / width**0.5)
        self.head = nn.Linear(width, n_classes)
        initialise(self)

    def forward(self, x_BMD: Tensor) -> Tensor:
        weight_BMH = self.question(x_BMD).softmax(dim=1)
        pooled_BHD = torch.einsum("bmh,bmd->bhd", weight_BMH, x_BMD)
        return self.head(torch.einsum("bhd,hde->bhe", pooled_BHD, self.value).flatten(1))


def _attentive(
    x_NMD: np.ndarray, y: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], seed: int, steps: int = 300
) -> np.ndarray:
    """Answers of an attentive probe, 300 steps of 64 series with a falling learning rate."""
    answer, width = np.zeros(len(y), dtype=y.dtype), x_NMD.shape[2]
    heads = next(h for h in (4, 3, 2, 1) if width % h == 0)
    for k, (train, test) in enumerate(folds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + k)
            model = AttentivePool(width, int(y.max()) + 1, heads)
            own = torch.from_numpy(x_NMD[train].astype(np.float32))
            mean, std = own.mean((0, 1)), own.std((0, 1)).clamp_min(1e-6)
            weight = torch.from_numpy(1 / np.bincount(y[train], minlength=int(y.max()) + 1).clip(1)).float()
            told = torch.from_numpy(y[train])
            optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
            for _ in range(steps):
                pick = torch.randint(len(train), (64,))
                loss = nn.functional.cross_entropy(model((own[pick] - mean) / std), told[pick], weight=weight)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        with torch.inference_mode():
            answer[test] = model((torch.from_numpy(x_NMD[test].astype(np.float32)) - mean) / std).argmax(1).numpy()
    return answer


def _judge(
    name: str,
    answers: dict[str, np.ndarray],
    truth: np.ndarray,
    people: np.ndarray,
    measure: str,
    chance: float,
    config: ProbeConfig,
    seed: int,
) -> list[Result]:
    """Values with intervals over people, and how much the encoder's linear probe is better, on the same resamples."""
    score = balanced_accuracy if measure == "balanced accuracy" else correlation
    names, of_person = np.unique(people, return_inverse=True)
    rows_of = [np.flatnonzero(of_person == i) for i in range(len(names))]
    rng = np.random.default_rng(seed)
    draws = [
        np.concatenate([rows_of[i] for i in rng.integers(len(names), size=len(names))]) for _ in range(config.resamples)
    ]
    spread = {way: np.array([score(truth[d], a[d]) for d in draws]) for way, a in answers.items()}
    best = LINEAR
    found = []
    for way, answer in answers.items():
        low, high = np.nanpercentile(spread[way], [2.5, 97.5])
        gain: dict[str, float] = {}
        if way != best:
            difference = spread[best] - spread[way]
            gain_low, gain_high = np.nanpercentile(difference, [2.5, 97.5])
            gain = {
                "gain": score(truth, answers[best]) - score(truth, answer),
                "gain_low": float(gain_low),
                "gain_high": float(gain_high),
            }
        found.append(
            Result(
                name,
                way,
                measure,
                score(truth, answer),
                float(low),
                float(high),
                chance,
                len(truth),
                len(names),
                **gain,
            )
        )
    return found


def balanced_accuracy(truth: np.ndarray, answer: np.ndarray) -> float:
    right = np.bincount(truth, truth == answer)
    counts = np.bincount(truth)
    return float((right[counts > 0] / counts[counts > 0]).mean())


def correlation(truth: np.ndarray, answer: np.ndarray) -> float:
    if np.ptp(truth) == 0 or np.ptp(answer) == 0:
        return 0.0
    return float(np.corrcoef(truth, answer)[0, 1])
