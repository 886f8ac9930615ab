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
from fmrisynth.bids import naming
from fmrisynth.bids.origin import read_origin
from fmrisynth.config.glm import FDR, SMALLEST_CLUSTER, GlmConfig
from fmrisynth.config.sample import guidance_in_words
from fmrisynth.config.train import network_name
from fmrisynth.data.blocks import read_blocks
from fmrisynth.errors import FmrisynthError
from fmrisynth.parse import parse_yaml, read_json
from fmrisynth.progress import count
from fmrisynth.stage import CLAIM

DEEPEST = 6
_CITATION = re.compile(r"@(\w+)")

_SAMPLERS = {
    "ab2": "an Adams-Bashforth method of second order [@salimans2022]", "ddpm": "ancestral sampling [@ho2020]",
    "ddim": "DDIM [@song2021]", "euler": "the Euler method",
}  # fmt: skip
_RESPONSES = {"spm": "SPM's", "glover": "Glover's"}
_NOISES = {"ols": "ordinary least squares", "ar1": "generalised least squares with AR(1) noise"}
_CONFOUNDS = {
    "auto": "six movement parameters, CSF and white matter where known", "simple": "nilearn's simple strategy",
    "scrubbing": "nilearn's scrubbing strategy",
}  # fmt: skip
_NETWORKS = {"hybrid": "a hybrid CNN-Transformer [@seo2025]",
             "all-cnn": "the convolutional ablation of a hybrid CNN-Transformer [@seo2025]",
             "all-transformer": "the transformer ablation of a hybrid CNN-Transformer [@seo2025]",
             "unet": "a U-Net with the class in its time embedding",
             "dit": "a plain diffusion transformer"}  # fmt: skip
_OBJECTIVES = {
    "epsilon": "the noise (DDPM) [@ho2020]", "v": "the velocity v [@salimans2022]",
    "flow": "the velocity of a straight path (flow matching) [@lipman2023]",
    "bridge": "the change from a person's earlier to a later scan along a bridge with noise [@albergo2024] [@vanpuyvelde2026]",
}  # fmt: skip


def methods_of(out: Path) -> list[str]:
    """Paragraphs about how the content of a folder was made, first step first; citations are ``[@key]`` (see `with_names`)."""
    paragraphs = list(dict.fromkeys(_chain(out, 0)))
    if not paragraphs:
        return []
    return [
        *paragraphs,
        f"All steps used fmrisynth {__version__}, which follows a published method [@seo2025], with PyTorch [@paszke2019] and nilearn "
        "[@abraham2014]. Data are in BIDS [@gorgolewski2016].",
    ]


def citations(paragraphs: list[str]) -> str:
    """The BibTeX entries that the paragraphs cite, in their order."""
    cited, entries = dict.fromkeys(_CITATION.findall(" ".join(paragraphs))), _entries()
    return "\n".join(entries[key] for key in cited) + "\n"


def with_names(paragraph: str) -> str:
    """A paragraph with its citations by author and year, ``(Salimans & Ho 2022)``, for pasting."""
    entries = _entries()

    def name(match: re.Match[str]) -> str:
        entry = entries[match[1]]
        authors = [a.partition(",")[0] for a in re.search(r"author=\{(.*?)\}, \w+=", entry)[1].split(" and ")]  # type: ignore[index]
        year = re.search(r"year=\{(\d+)\}", entry)[1]  # type: ignore[index]
        few = len(authors) < 3 and "others" not in authors
        return f"({' & '.join(authors) if few else authors[0] + ' et al.'} {year})"

    return re.sub(rf"\[{_CITATION.pattern}\]", name, paragraph)


def _entries() -> dict[str, str]:
    """BibTeX entries by key."""
    text = (resources.files("fmrisynth.report") / "references.bib").read_text(encoding="utf-8")
    return {match[1]: line for line in text.splitlines() if (match := re.match(r"@\w+\{(\w+),", line))}


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
            yield write(settings, out)
        except (
            FmrisynthError,
            KeyError,
            OSError,
            TypeError,
            ValueError,
        ):  # of another version: better no sentence than a wrong one
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


def _simulate(s: Mapping[str, Any], out: Path) -> str:
    if s["layout"] == "anatomy":
        what = "T1-weighted images" if s.get("modality") == "T1w" else "EPI reference volumes"
        return f"Data were simulated: {what} of a phantom cohort (seed {s['seed']}). No human was measured."
    return (
        f"Data were simulated: a phantom cohort of task-fMRI with planted responses (tasks {', '.join(s['tasks'])}; "
        f"seed {s['seed']}), after the tasks of the Human Connectome Project [@barch2013]. No human was measured."
    )


def _prepare(s: Mapping[str, Any], out: Path) -> str:
    window, split = s["window"], s["split"]
    where = "in each participant's own space" if s["native"] else "in MNI space on a grid of 3 mm"
    cut = f"cut into block windows {where}: {window['n_frames']} frames from {window['delay_s']:g} s after every block onset"
    if s["unit"] == "run":
        cut = f"taken whole {where}, one frame every {s['tr_s']:g} s"
    shares = (
        f"all {split['all']}"
        if split.get("all")
        else f"{split['train']:g} / {split['val']:g} / {split['test']:g} training, validation and test"
    )
    what, done = "runs", f"{cut}, with intensities scaled to a grand mean of 10,000"
    if s["unit"] == "anatomy":
        what = "T1-weighted images"
        done = f"averaged within the brain to voxels of {s['anatomy']['resolution_mm']:g} mm in MNI space"
    images = f"Simulated {what}" if read_origin(out).is_phantom else _preprocessed(s, out, what)
    return f"{images} were {done}. Participants were split by hash, {shares}."


def _preprocessed(s: Mapping[str, Any], out: Path, what: str) -> str:
    """Whose work the images are, as far as their datasets say it."""
    start = what[0].upper() + what[1:]
    claim = _mapping(out / CLAIM) or {}
    roots = [Path(root) for root in [*s.get("derivatives", []), *claim.get("Sources", [])]]
    if any(next(root.glob("*/MNINonLinear"), None) for root in roots):
        return f"{start} preprocessed by the HCP pipelines [@vanessen2013]"
    made = [
        entry for root in roots for entry in (_mapping(root / "dataset_description.json") or {}).get("GeneratedBy", [])
    ]
    names = dict.fromkeys(f"{entry['Name']} {entry.get('Version', '')}".strip() for entry in made)
    cited = " [@esteban2019]" if "fmriprep" in " ".join(names).lower() else ""
    return f"{start} preprocessed with {', '.join(names)}{cited}" if names else f"Preprocessed {what}"


def _tokenize(s: Mapping[str, Any], out: Path) -> str:
    from fmrisynth.data.latents import TOKENIZER_FOLDER
    from fmrisynth.models.tokenizers.base import TOKENIZER_JSON, downsampling_of

    # Of the tokenizer itself: one that was given need not be of the kind that the settings would have fitted.
    found = _mapping(out / TOKENIZER_FOLDER / TOKENIZER_JSON) or {}
    kind = found.get("kind") or s.get("model", {}).get("kind", "patch")
    how = {
        "vqgan": "a VQ-GAN [@esser2021]", "patch": "a position-wise linear transform of patches", "pooling": "mean pooling",
        "mae": "the frozen encoder of a masked autoencoder [@he2022] and a linear projection [@vanpuyvelde2026]",
        "kl": "a variational autoencoder [@rombach2022]",
    }.get(kind, kind)  # fmt: skip
    return (
        f"Frames were encoded to latents, {downsampling_of(found)} times smaller along each side, by {how} on intensities with "
        f"{found.get('normalisation', s['normalisation'])} normalisation."
    )


def _train(s: Mapping[str, Any], out: Path) -> str:
    optimiser = s["optimiser"]
    return (
        f"A conditional denoiser, {_NETWORKS[network_name(s['model'])]}, was trained to predict "
        f"{_OBJECTIVES[s['objective']['prediction']]} for "
        f"{s['steps']:,} steps of {s['batch_size']} blocks with "
        f"AdamW [@loshchilov2019] (learning rate {optimiser['learning_rate']:g}); the condition was dropped in "
        f"{s['conditioning']['dropout']:.0%} of the instances, weights were averaged."
        + (" Latents were whitened." if s.get("whiten") else "")
    )


def _sample(s: Mapping[str, Any], out: Path) -> str:
    blocks = read_blocks(out)
    first = blocks[0]
    subjects, conditions = (list(dict.fromkeys(getattr(b, name) for b in blocks)) for name in ("subject", "condition"))
    if first.is_run:
        what = f"{count(len(blocks), 'run')} of {count(len(subjects), 'synthetic subject')}"
    else:
        what = (
            f"{count(len(blocks), 'sample')} of {count(len(conditions), 'condition')} ({', '.join(conditions)}; "
            f"{count(len(subjects), 'synthetic subject')}; {first.n_frames} frames each)"
        )
    kind, _, size = str(dict(read_json(naming.image_sidecar(first.path)))["Network"]).partition(", ")
    if s.get("baselines"):
        n = len(subjects)
        return (
            f"{count(len(blocks), 'forecast')} of {n} {'person' if n == 1 else 'people'} of {Path(str(s['baselines'])).name} came from a "
            f"latent bridge model ({_NETWORKS[kind]} with {size}; SHA-256 {s['CheckpointSHA256'][:12]}) [@vanpuyvelde2026] by "
            f"{_SAMPLERS[s['Sampler']]} in {s['SamplerSteps']} steps; the decoded change was added to the earlier scan."
        )
    guidance = (
        f"classifier-free guidance {guidance_in_words(s['GuidanceScale'])} [@hosalimans2022]"
        if s["GuidanceScale"] != 1
        else "no guidance"
    )
    noise = (
        " What the tokenizer cannot represent was added as noise of the measured size."
        if s.get("ObservationNoise")
        else ""
    )
    described = str(dict(read_json(naming.image_sidecar(first.reference_path)))["Description"])
    anatomy = (
        f"Each subject was given an anatomy from {s['Anatomy']}."
        if s.get("Anatomy", "mean") != "mean"
        else f"Reference volume: {described[:1].lower() + described[1:]}."
    )
    return (
        f"{what} were drawn at a repetition time of {first.tr_s:g} s and {first.load_grid().voxel_mm[0]:g} mm from a latent diffusion "
        f"model ({_NETWORKS[kind]} with {size}; SHA-256 {s['CheckpointSHA256'][:12]}) by {_SAMPLERS[s['Sampler']]} in "
        f"{s['SamplerSteps']} steps with {guidance} (seed {s['Seed']}).{noise} {anatomy}"
    )


def _glm(s: Mapping[str, Any], out: Path) -> str:
    config = GlmConfig.model_validate(s)
    subjects = len(list(out.glob("sub-*/sub-*_design.tsv")))
    models = [dict(read_json(path)).get("Model") for path in out.glob("sub-*/**/*_stat-z_statmap.json")]
    parts = [
        f"{'block' if config.unit == 'block' else 'events'} convolved with {_RESPONSES[config.hrf]} haemodynamic response",
        "constant",
    ]
    if config.resolved_drift != "none":
        high_pass = f" (high-pass {config.high_pass_hz:g} Hz)" if config.resolved_drift == "cosine" else ""
        parts.append(f"{config.resolved_drift} drift{high_pass}")
    if any("confounds" in str(model) for model in models):
        parts.append(f"confounds ({_CONFOUNDS[config.confounds]})")
    smoothing = f"smoothed by {mm:g} mm FWHM" if (mm := config.resolved_smoothing_fwhm_mm) else "without smoothing"
    text = (
        f"General linear models ({'; '.join(parts)}) were fitted by {_NOISES[config.resolved_noise_model]} to the "
        f"{'block windows' if config.unit == 'block' else 'whole runs'} of {count(subjects, 'subject')}, {smoothing} [@abraham2014]."
    )
    groups = [dict(read_json(path)) for path in out.glob("group/*_stat-z_statmap.json")]
    sizes = sorted({int(keys["Subjects"]) for keys in groups})
    if sizes:
        n = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        text += " Group maps are " + (
            f"one-sample random-effects t tests over {n} subjects, as z."
            if sizes[-1] > 1
            else "the fixed effects of the one subject, as z."
        )
    if (out / "group.html").is_file():
        text += f" They are shown at a false discovery rate of {FDR:g} [@benjamini1995] in clusters of at least {SMALLEST_CLUSTER} voxels."
    return text


def _evaluate(s: Mapping[str, Any], out: Path) -> str:
    return (
        "Synthetic and real blocks were compared by correlation of group maps, representational similarity "
        "[@kriegeskorte2008], Top-1 identification and further checks, with 95 % "
        "intervals (delete-a-group jackknife) and as many real blocks of other people in the place of the samples."
    )


_WRITERS = {
    "simulate": _simulate, "prepare": _prepare, "tokenize": _tokenize, "train": _train,
    "sample": _sample, "glm": _glm, "evaluate": _evaluate,
}  # fmt: skip
