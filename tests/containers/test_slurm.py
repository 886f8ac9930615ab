"""The Slurm scripts: what they submit (fast), and a whole study under a fake scheduler (slow)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers import fake_slurm

SCRIPTS = Path(__file__).resolve().parents[2] / "containers" / "slurm"
LABELS = ("100307", "100408", "101107", "101309", "101915")

SETTINGS = """
SOURCE={source}
WORK={work}
CONTAINER=
set_up() {{ :; }}
PARTICIPANTS=
PREPARE_OPTIONS=(--set split.train=0.5 --set split.val=0.0 --set split.test=0.5)
TOKENIZE_OPTIONS=(--preset smoke)
TRAIN_OPTIONS=(--preset smoke --device cpu --steps 120 --set checkpoint_every=20 --set val_every=200)
SAMPLE_OPTIONS=(--n 3 --steps 2 --device cpu)
GLM_OPTIONS=(--set reports=false)
EVALUATE_OPTIONS=(--set split_half_repeats=5 --set utility_grid=false --set baseline_samples=3 --set glass_brain=false)
ARRAY_TASKS=2
TRAIN_NODES=2
GPUS_PER_NODE=1
TRAIN_MARGIN_MIN=10
SBATCH_OPTIONS=(--account=lab)
SBATCH_CPU=(--partition=cpu)
SBATCH_GPU=(--partition=gpu --gpus-per-node=1)
SBATCH_TRAIN=(--time=12:00:00)
"""


class Cluster:
    """A fake Slurm with one study's settings."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.work, self.root = folder / "work", folder / "slurm"
        self.root.mkdir()
        self.settings = folder / "settings.sh"
        self.settings.write_text(SETTINGS.format(source=source, work=self.work))
        programs = fake_slurm.install(folder / "bin")
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        repository = str(SCRIPTS.parents[1])
        self.environment = os.environ | {"PATH": path, "FAKE_SLURM": str(self.root), "PYTHONPATH": repository}

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPTS / "submit.sh", self.settings, *words], env=self.environment, capture_output=True, text=True, check=False
        )  # fmt: skip

    @property
    def jobs(self) -> dict[str, fake_slurm.Job]:
        return {job.name.removeprefix("fmrisynth-"): job for job in fake_slurm.read_jobs(self.root)}

    def graph(self) -> dict[str, set[str]]:
        names = {job.number: name for name, job in self.jobs.items()}
        return {name: {f"{how}:{names[number]}" for how, number in job.needs} for name, job in self.jobs.items()}


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    for label in LABELS:
        (tmp_path / "hcp" / label / "MNINonLinear").mkdir(parents=True)
    return Cluster(tmp_path, tmp_path / "hcp")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_are_clean_shell():
    scripts = [*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*.sbatch"), SCRIPTS.parent / "smoke.sh"]
    done = subprocess.run(
        ["shellcheck", "-x", "-P", str(SCRIPTS), *map(str, scripts)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_stage_waits_for_what_it_reads(cluster):
    done = cluster.submit()
    assert done.returncode == 0, done.stderr
    assert cluster.graph() == {
        "plan": set(),
        "prepare": {"afterok:plan"},
        "glm-real": {"afterok:prepare"},
        "group-real": {"afterok:prepare", "afterok:glm-real"},
        "fit": {"afterok:prepare"},
        "tokenize": {"afterok:fit"},
        "tokenizer-report": {"afterok:tokenize"},
        "train": {"afterok:tokenize"},
        "sample": {"afterok:train"},
        "gather": {"afterok:sample"},
        "glm-synthetic": {"afterok:gather"},
        "group-synthetic": {"afterok:glm-synthetic"},
        "evaluate": {"afterok:prepare", "afterok:tokenize", "afterok:gather"},
    }
    assert (cluster.work / "participants.txt").read_text().split() == list(LABELS)


def test_options_reach_sbatch(cluster):
    cluster.submit()
    jobs = cluster.jobs
    for name, job in jobs.items():
        assert job.options["account"] == "lab"
        assert job.options["kill-on-invalid-dep"] == "yes"
        assert job.options["open-mode"] == "append"
        assert job.options["partition"] == ("gpu" if name in ("train", "sample", "gather") else "cpu")
        assert "requeue" in job.options or name == "plan"
    arrays = {name: job.options["array"] for name, job in jobs.items() if "array" in job.options}
    assert arrays == dict.fromkeys(("prepare", "tokenize", "glm-real", "sample", "glm-synthetic"), "1-2")
    train = jobs["train"].options
    assert train["signal"] == "USR1@300"
    assert train["nodes"] == "2"
    assert train["time"] == "12:00:00"  # the settings win over the script


def test_from_a_later_stage(cluster):
    cluster.submit("--from", "train")
    graph = cluster.graph()
    assert set(graph) == {"train", "sample", "gather", "glm-synthetic", "group-synthetic", "evaluate"}
    assert graph["train"] == set()
    assert graph["evaluate"] == {"afterok:gather"}


def test_keep_going_goes_on_without_failed_participants_only(cluster):
    cluster.submit("--keep-going")
    graph = cluster.graph()
    assert graph["fit"] == {"afterany:prepare"}
    assert graph["train"] == {"afterany:tokenize"}
    assert graph["sample"] == {"afterok:train"}


def test_dry_run_submits_and_writes_nothing(cluster):
    done = cluster.submit("--dry-run")
    assert done.stdout.count("sbatch --parsable") == 13
    assert not cluster.jobs
    assert not cluster.work.exists()


def test_a_second_submission_waits_for_the_first_or_cancels_it(cluster):
    cluster.submit()
    again = cluster.submit()
    assert again.returncode == 1
    assert "still in the queue" in again.stderr
    assert cluster.submit("--cancel").returncode == 0
    assert {job.state for job in cluster.jobs.values()} == {"CANCELLED"}
    assert cluster.submit().returncode == 0


def test_mistakes_are_named(cluster, tmp_path):
    assert cluster.submit("--form", "train").returncode == 2
    assert cluster.submit("--from", "training").returncode == 2
    shutil.rmtree(tmp_path / "hcp")
    done = cluster.submit()
    assert done.returncode == 1
    assert "found no participant" in done.stderr


def test_a_misspelt_option_is_refused_as_sbatch_does(cluster):
    cluster.settings.write_text(cluster.settings.read_text().replace("--account=lab", "--acount=lab"))
    assert cluster.submit().returncode != 0
    assert not cluster.jobs


def shell(cluster: Cluster, code: str, **environment: str) -> list[str]:
    """Words that a piece of shell code prints with `lib.sh` loaded."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'SLURM_DIR="{SCRIPTS}"; source "$SLURM_DIR/lib.sh"; {code}'],
        env=cluster.environment | {"SETTINGS": str(cluster.settings)} | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.parametrize("n_tasks", [1, 2, 3, 7])
def test_shares_of_an_array_are_a_partition(cluster, n_tasks):
    shares = [
        shell(cluster, "participants_of_source | my_share",
              SLURM_ARRAY_TASK_ID=str(k), SLURM_ARRAY_TASK_COUNT=str(n_tasks))
        for k in range(1, n_tasks + 1)
    ]  # fmt: skip
    assert sorted(label for share in shares for label in share) == list(LABELS)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_newest_step(cluster):
    assert shell(cluster, "newest_step") == ["0"]
    for step in (8, 90):
        (cluster.work / f"model/checkpoints/step-{step:08d}").mkdir(parents=True)
    assert shell(cluster, "newest_step") == ["90"]


@pytest.mark.parametrize(
    ("left", "minutes"), [("1-02:03:04", "1563"), ("2:03:04", "123"), ("3:04", "3"), ("UNLIMITED", None)]
)
def test_minutes_left(cluster, left, minutes):
    text = (SCRIPTS / "train.sbatch").read_text()
    function = text[text.index("minutes_left() {") : text.index("\nbudget=")]
    found = shell(cluster, function + "minutes_left", FAKE_TIME_LEFT=left, SLURM_JOB_ID="1")
    assert found == ([minutes] if minutes else [])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find a job's processes")
def test_a_study_survives_a_dead_node_and_a_time_limit(tmp_path):
    """From a phantom to a report: a task of `prepare` is killed half-way, training meets its time limit on two nodes."""
    source = tmp_path / "hcp"
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parents[1])}
    subprocess.run(
        [sys.executable, "-m", "fmrisynth", "simulate", source, "--resolution", "3", "--n-subjects", "4", "--seed", "3",
         "--tasks", "GAMBLING", "MOTOR", "--set", "directions=[LR]", "--set", "write_truth=false"],
        check=True, env=environment,
    )  # fmt: skip
    cluster = Cluster(tmp_path, source)
    assert cluster.submit().returncode == 0
    scheduler = fake_slurm.Scheduler(cluster.root, dict(cluster.environment))
    blocks, checkpoints = cluster.work / "blocks", cluster.work / "model" / "checkpoints"
    scheduler.accidents = [
        ("fmrisynth-prepare", lambda: any(blocks.glob("sub-*/func/sub-*_bold.nii.gz")), fake_slurm.kill_tree),
        ("fmrisynth-train", lambda: any(checkpoints.glob("step-*")), fake_slurm.warn_steps),
    ]
    scheduler.run()

    logs = {path.name: path.read_text() for path in (cluster.work / "slurm-logs").iterdir()}
    assert {job.state for job in cluster.jobs.values()} == {"COMPLETED"}, json.dumps(logs, indent=1)
    assert not scheduler.accidents
    fates = {}
    for name, task, fate in scheduler.history:
        fates.setdefault((name.removeprefix("fmrisynth-"), task), []).append(fate)
    assert fates["prepare", 1] == ["requeue", 0]
    assert fates["prepare", 2] == [0]
    assert fates["train", None] == ["requeue", 0]
    (train_log,) = (text for name, text in logs.items() if name.startswith("train"))
    assert "a signal asked to stop" in train_log
    assert "Continuing from step" in train_log

    from fmrisynth.data.blocks import subjects_of

    assert len(subjects_of(blocks)) == 4
    assert len(subjects_of(cluster.work / "synthetic")) == 2 * 3
    table = (cluster.work / "synthetic" / "participants.tsv").read_text().splitlines()
    assert len(table) == 1 + 2 * 3
    assert len(list((cluster.work / "maps-real/group").glob("*_stat-z_statmap.nii.gz"))) == 2
    assert len(list((cluster.work / "maps-synthetic/group").glob("*_stat-z_statmap.nii.gz"))) == 2
    assert "corr" in json.dumps(json.loads((cluster.work / "report/metrics.json").read_text())).lower()
    assert (cluster.work / "report" / "report.html").is_file()
