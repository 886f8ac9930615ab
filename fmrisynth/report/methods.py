"""The methods of an output folder in words, with citations, from what was run: what a paper would say.

A folder keeps the command and settings that it was begun with (`fmrisynth.stage.CLAIM`) and the resolved settings of each call; its
sources lead to the folders before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from fmrisynth import __version__
from fmrisynth.bids.origin import read_origin
from fmrisynth.parse import parse_yaml, read_json
from fmrisynth.stage import CLAIM

DEEPEST = 6
_CITATION = re.compile(r"@(\w+)")

_SAMPLERS = {
    "ab2": "the two-step Adams-Bashforth method in the angle of the path [@salimans2022]", "ddpm": "ancestral sampling [@ho2020]",
    "ddim": "DDIM [@song2021]", "dpmpp2m": "DPM-Solver++ (2M) [@lu2022]", "euler": "the Euler method",
    "heun": "Heun's method [@karras2022]",
}  # fmt: skip
_RESPONSES = {"spm": "SPM's", "glover": "Glover's"}
_OBJECTIVES = {
    "epsilon": "the noise (DDPM) [@ho2020]", "v": "the velocity v [@salimans2022]",
    "flow": "the velocity of a straight path (flow matching) [@lipman2023]",
}  # fmt: skip


def methods_of(out: Path) -> list[str]:
    """Paragraphs about how the content of a folder was made, first step first; citations are ``[@key]``."""
    paragraphs = list(dict.fromkeys(_chain(out, 0)))
    if not paragraphs:
        return []
    return [
        *paragraphs,
        f"All steps: fmrisynth {__version__}, after [@seo2025], with PyTorch [@paszke2019] and nilearn "
        "[@abraham2014]; data in BIDS [@gorgolewski2016].",
    ]


def citations(paragraphs: list[str]) -> str:
    """The BibTeX entries that the paragraphs cite, in their order."""
    text = (resources.files("fmrisynth.report") / "references.bib").read_text(encoding="utf-8")
    entries = {match[1]: line for line in text.splitlines() if (match := re.match(r"@\w+\{(\w+),", line))}
    cited = dict.fromkeys(key for paragraph in paragraphs for key in _CITATION.findall(paragraph))
    return "\n".join(entries[key] for key in cited) + "\n"


def _chain(out: Path, depth: int) -> Iterator[str]:
    claim = _mapping(out / CLAIM)
    if claim is None or depth == DEEPEST:
        return
    for source in claim.get("Sources", []):
        yield from _chain(Path(source), depth + 1)
    command = str(claim.get("Command"))
    begun_with = claim["Settings"] if isinstance(claim.get("Settings"), dict) else {}
    settings = begun_with | _settings(out, command)  # a later call may have changed those that are free, such as steps
    if command == "sample":
        yield read_origin(out).statement
    write = _WRITERS.get(command)
    if write is not None:
        try:
            yield write(settings)
        except (KeyError, TypeError, ValueError):  # of another version: better no sentence than a wrong one
            return


def _settings(out: Path, command: str) -> dict[str, Any]:
    """Resolved settings of a folder's latest call; a training run keeps its own."""
    calls = sorted((out / "logs").glob(f"{command}_*.yaml"), key=lambda path: (path.stat().st_mtime, path.name))
    calls += [path for path in [out / "config.yaml"] if command == "train" and path.is_file()]
    if not calls:
        return {}
    try:
        content = parse_yaml(calls[-1].read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _mapping(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _simulate(s: Mapping[str, Any]) -> str:
    return (
        f"Data were simulated: a phantom cohort of task-fMRI with planted responses (tasks {', '.join(s['tasks'])}; "
        f"seed {s['seed']}), after the tasks of "
        "the Human Connectome Project [@barch2013]. No human was measured."
    )


def _prepare(s: Mapping[str, Any]) -> str:
    window, split = s["window"], s["split"]
    where = "in each participant's own space" if s["native"] else "in MNI space on a grid of 3 mm"
    shares = (
        f"all {split['all']}"
        if split.get("all")
        else f"{split['train']:g} / {split['val']:g} / {split['test']:g} training, validation and test"
    )
    return (
        "Preprocessed runs (HCP pipelines [@vanessen2013] or fMRIPrep [@esteban2019]) were cut into block windows "
        f"{where}: {window['n_frames']} frames from "
        f"{window['delay_s']:g} s after every block onset, intensities scaled to a grand mean of 10,000. "
        f"Participants were split by hash, {shares}."
    )


def _tokenize(s: Mapping[str, Any]) -> str:
    kind = s.get("model", {}).get("kind", "patch")
    how = (
        "a VQ-GAN [@esser2021]"
        if kind == "vqgan"
        else "a position-wise linear transform of patches"
        if kind == "patch"
        else f"{kind} pooling"
    )
    return (
        f"Frames were encoded to latents, 4 times smaller along each side, by {how} on intensities with "
        f"{s['normalisation']} normalisation."
    )


def _train(s: Mapping[str, Any]) -> str:
    network = (
        "the hybrid CNN-Transformer of [@seo2025]"
        if s["model"]["kind"] == "hybrid"
        else "a U-Net with the class in its time embedding"
    )
    optimiser = s["optimiser"]
    return (
        f"A conditional denoiser, {network}, was trained to predict {_OBJECTIVES[s['objective']['prediction']]} for "
        f"{s['steps']:,} steps of {s['batch_size']} blocks with "
        f"AdamW [@loshchilov2019] (learning rate {optimiser['learning_rate']:g}); the condition was dropped in "
        f"{s['conditioning']['dropout']:.0%} of the instances, weights were averaged."
        + (" Latents were whitened." if s.get("whiten") else "")
    )


def _sample(s: Mapping[str, Any]) -> str:
    guidance = (
        f", classifier-free guidance {s['GuidanceScale']:g} [@hosalimans2022]"
        if s["GuidanceScale"] != 1
        else ", without guidance"
    )
    noise = (
        " What the tokenizer cannot represent was added as noise of the measured size."
        if s.get("ObservationNoise")
        else ""
    )
    return f"Samples were drawn with {_SAMPLERS[s['Sampler']]} in {s['SamplerSteps']} steps{guidance} (seed {s['Seed']}).{noise}"


def _glm(s: Mapping[str, Any]) -> str:
    what = (
        "block windows (boxcar of the block and a constant)"
        if s["unit"] == "block"
        else "whole runs (events, drift and confounds)"
    )
    page = " The group page shows them at a false discovery rate of 0.05 [@benjamini1995]." if s["reports"] else ""
    return (
        f"General linear models were fitted to {what} with {_RESPONSES[s['hrf']]} haemodynamic response [@abraham2014]. "
        "Group maps are one-sample random-effects t over subjects, as "
        f"z (fixed effects where there is one subject).{page}"
    )


def _evaluate(s: Mapping[str, Any]) -> str:
    return (
        "Synthetic and real blocks were compared by correlation of group maps, representational similarity "
        "[@kriegeskorte2008], Top-1 identification and further checks, with 95 % "
        "intervals (delete-a-group jackknife) and as many real blocks of other people in the place of the samples."
    )


_WRITERS = {
    "simulate": _simulate, "prepare": _prepare, "tokenize": _tokenize, "train": _train,
    "sample": _sample, "glm": _glm, "evaluate": _evaluate,
}  # fmt: skip
