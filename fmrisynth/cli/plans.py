"""What the commands would do, for ``--dry-run``: lines for people; nothing is written.

What has a plan of its own in its stage (`prepare`, `sample`, whole runs) is not repeated here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmrisynth.bids import naming
from fmrisynth.conditions import load_table
from fmrisynth.config.app import AppConfig
from fmrisynth.config.embed import EmbedConfig
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.config.glm import GlmConfig
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.config.tokenize import TokenizeConfig
from fmrisynth.config.train import TrainConfig
from fmrisynth.progress import count, listed

CONDITION_COLUMNS = ("condition", "task", "trial type", "model knows it", "paper's seven")


def condition_rows(checkpoint: Path | None, table: Path | None) -> list[tuple[str, ...]]:
    """The condition table, with a mark at what a model knows and at the paper's seven."""
    from fmrisynth.models.bundled import model_dir
    from fmrisynth.models.checkpoint import find_model_dir, read_card

    known = read_card(find_model_dir(model_dir(checkpoint))).conditions
    conditions = load_table(table).conditions
    rows: list[tuple[str, ...]] = [
        (c.label, c.task, c.stem, "yes" if c.label in known else "", "yes" if c.default else "")
        for c in conditions.values()
    ]
    return rows + [(label, *label.split("_", 1), "yes", "") for label in known if label not in conditions]


def _state(is_done: bool) -> str:
    return "done" if is_done else "to do"


def simulation(out: Path, config: SimulateConfig) -> Iterator[str]:
    """Subjects, runs or blocks of a phantom cohort."""
    from fmrisynth.simulate.phantom import subject_index
    from fmrisynth.stage import Stage

    n_runs = len(config.tasks) * len(config.directions)
    what = {
        "blocks": "block dataset",
        "anatomy": f"{config.modality} anatomies, {count(config.sessions, 'session')} per subject",
    }.get(config.layout, f"{config.layout} tree, {count(n_runs, 'run')} per subject")
    own = range(config.first_subject, config.first_subject + config.n_subjects)
    labels = (record.removeprefix("sub-") for record in Stage("simulate", out).records())
    n_done = sum(label.isdigit() and subject_index(label) in own for label in labels)
    yield f"{count(config.n_subjects, 'phantom subject')} to {out}, {n_done} done: {what}; tasks {', '.join(config.tasks)}"


def encoding(
    prepared: Path, out: Path, config: TokenizeConfig, tokenizer: Path | None, labels: Sequence[str] | None
) -> Iterator[str]:
    """What a tokenizer is fitted to, and whose blocks are encoded."""
    from fmrisynth.bids.sources import choose_subjects
    from fmrisynth.data.blocks import read_blocks, subjects_of

    known = subjects_of(prepared)
    subjects = choose_subjects(prepared, known, labels)
    counts = Counter(block.subject for block in read_blocks(prepared, subjects=subjects))
    done = {subject for subject in subjects if (out / naming.subject_latents(subject)[1]).exists()}
    yield f"{count(counts.total(), 'block')} of {count(len(subjects), 'subject')} to {out}, {len(done)} subjects done"
    training = [block for block in read_blocks(prepared) if block.split == "train"]
    if tokenizer is not None:
        yield f"use tokenizer {tokenizer}"
    else:
        n = min(len(training), config.max_fit_blocks)
        yield (
            f"fit a {config.model.kind} tokenizer to {count(n, 'block')} of split train"
            if n
            else "fit a tokenizer to all blocks"
        )
    yield from listed([f"encode sub-{s}: {count(counts[s], 'block')}, {_state(s in done)}" for s in subjects])


def training(latents: Path, out: Path, config: TrainConfig) -> Iterator[str]:
    """The network, what it sees, and where it goes on."""
    import torch

    from fmrisynth.data.attributes import Number, n_labels
    from fmrisynth.models.build import build_denoiser, check_grid, count_parameters
    from fmrisynth.models.checkpoint import list_checkpoints
    from fmrisynth.train.denoiser import open_latents

    data, numbers = open_latents(latents, config), config.conditioning.numbers
    check_grid(config.model, data.latent_shape[2:])
    chosen = {split: data.select(split) for split in ("train", "val")}
    vocabulary = data.vocabulary(chosen["train"], list(config.conditioning.rates), numbers)
    with torch.device("meta"):
        network = build_denoiser(config.model, data.channels, n_labels(vocabulary), events=data.telling)
    saved = list_checkpoints(out)
    start = f"goes on from {saved[-1].name}" if saved else "starts anew"
    yield f"{start}; {config.steps} steps of {count(config.batch_size, 'instance')}, a checkpoint every {config.checkpoint_every} steps"
    yield f"{config.model.kind} network, {count_parameters(network) / 1e6:.1f} M parameters, on {data.latent_shape} latents"
    conditions = vocabulary["condition"]
    assert not isinstance(conditions, Number)
    yield f"{count(len(chosen['train']), 'training instance')}, {len(chosen['val'])} for validation; conditions {', '.join(conditions)}"


def maps(dataset: Path, out: Path, config: GlmConfig, labels: Sequence[str] | None) -> Iterator[str]:
    """Subjects and contrasts."""
    if config.unit == "run":
        from fmrisynth.glm.runs import plan_runs

        yield from plan_runs(dataset, config, labels)
        return
    from fmrisynth.bids.sources import choose_subjects
    from fmrisynth.data.blocks import read_blocks, subjects_of
    from fmrisynth.glm.contrasts import condition_contrasts
    from fmrisynth.glm.maps import index_path

    subjects = choose_subjects(dataset, subjects_of(dataset), labels)
    blocks = read_blocks(dataset, subjects=subjects, split=config.split)
    known = list(dict.fromkeys(block.condition for block in blocks))
    contrasts = condition_contrasts(known, config.contrasts) if known else []
    counts = Counter(block.subject for block in blocks)
    done = {subject for subject in subjects if (out / index_path(subject)).exists()}
    yield f"maps of {count(len(subjects), 'subject')} to {out}, {len(done)} done"
    yield f"contrasts: {', '.join(contrast.title for contrast in contrasts) or 'none'}"
    yield from listed(
        [f"sub-{s}: {count(counts[s], 'block')}, {_state(s in done)}" if counts[s] else f"sub-{s}: no block of the split" for s in subjects]
    )  # fmt: skip
    yield f"group maps of {count(len(contrasts), 'contrast')} in {out / 'group'}"


def embedding(
    dataset: Path, out: Path, config: EmbedConfig, encoder: Path | None, labels: Sequence[str] | None
) -> Iterator[str]:
    """Whose series are mapped, and what encodes them."""
    import torch

    from fmrisynth.bids.sources import choose_subjects
    from fmrisynth.embed.encoder import build_autoencoder, load_encoder
    from fmrisynth.embed.flatmap import flat_map
    from fmrisynth.embed.series import open_series
    from fmrisynth.models.build import count_parameters

    sources = open_series(dataset, config.seed)
    subjects = choose_subjects(dataset, list(sources), labels)
    splits = Counter(series.split or "no split" for subject in subjects for series in sources[subject]().series)
    shares = ", ".join(f"{split} {n}" for split, n in splits.items())
    yield f"{splits.total()} series of {count(len(subjects), 'subject')} ({shares}) to {out}"
    if encoder is not None:
        loaded = load_encoder(encoder)
        config = config.model_copy(update={"maps": loaded.maps})
        yield f"use encoder {encoder}, step {loaded.card.step}"
    else:
        with torch.device("meta"):
            network = build_autoencoder(config.model, config.maps)
        whole, alone = count_parameters(network) / 1e6, count_parameters(network.encoder) / 1e6
        yield f"fit an encoder: {whole:.1f} M parameters with its decoder, {alone:.1f} M without"
        yield f"{config.steps} steps of {count(config.batch_size, 'clip')}, a checkpoint every {config.checkpoint_every} steps"
    picture = flat_map(config.maps.pixel_mm, config.maps.surfaces)
    yield f"flat maps of {picture.shape[0]} x {picture.shape[1]} pixels of {config.maps.pixel_mm:g} mm, {picture.n_pixels} on the cortex"


def comparison(real: Path, synthetic: Path, config: EvaluateConfig) -> Iterator[str]:
    """Who is compared with whom, in which conditions."""
    from fmrisynth.bids.origin import read_origin
    from fmrisynth.data.blocks import read_blocks
    from fmrisynth.evaluate.cohorts import choose_blocks

    if config.unit == "block":
        yield f"conditions compared: {', '.join(choose_blocks(real, synthetic, config).conditions)}"
    else:
        yield {"run": "whole runs compared", "anatomy": "anatomies compared"}[config.unit]
    found = {"real": read_blocks(real), "synthetic": read_blocks(synthetic)}
    for (name, blocks), root in zip(found.items(), (real, synthetic), strict=True):
        splits = Counter(block.split or "no split" for block in blocks)
        n_subjects = len({block.subject for block in blocks})
        shares = ", ".join(f"{split} {n}" for split, n in splits.items())
        yield f"{name}: {root}: {count(len(blocks), 'block')} of {count(n_subjects, 'subject')} ({shares}). {read_origin(root).statement}"


def participants(
    bids_dir: Path, out: Path, config: AppConfig, tokenizer: Path | None, labels: Sequence[str] | None
) -> Iterator[str]:
    """The participant level of the BIDS App."""
    from fmrisynth.app import prepare_config
    from fmrisynth.prepare import plan_prepare

    yield from plan_prepare(bids_dir, prepare_config(config), participant_labels=labels)
    yield f"then for each: latents with {tokenizer or 'the bundled tokenizer'} in {out / 'latents'}, maps and a page in {out / 'glm'}"


def group(out: Path, config: AppConfig, checkpoint: Path | None) -> Iterator[str]:
    """The group level of the BIDS App."""
    from fmrisynth.data.blocks import read_blocks
    from fmrisynth.models.bundled import model_dir
    from fmrisynth.models.checkpoint import find_model_dir, read_card

    blocks = read_blocks(out)
    card = read_card(find_model_dir(model_dir(checkpoint)))
    wanted = sorted({block.condition for block in blocks} & set(card.conditions))
    yield f"group maps of {count(len({block.subject for block in blocks}), 'participant')} in {out / 'glm' / 'group'}"
    named = ", ".join(wanted) or "none: the model knows no condition of these"
    yield f"{count(config.n, 'sample')} of each of {named} in {out / 'synthetic'}"
    yield f"model: {checkpoint or 'the bundled one'}. {card.origin.statement}"
    yield f"comparison in {out / 'evaluation' / 'report.html'}"
