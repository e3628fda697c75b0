"""Train one stage of the vertebra segmentation: `python -m analysis.training.segmentation --stage coarse --data DIR`.

The run folder holds the prepared cases, the checkpoint, the history, its curves and the weights; started again with
`resume`, the run goes on where it stopped and ends with the same weights.
"""

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from analysis.errors import ModelError
from analysis.training.curves import draw_curves, read_history
from analysis.training.labelled import labelled_scan
from analysis.training.loop import LoopSettings, RunFolder, SampleSource, Trainer, read_checkpoint, run
from analysis.training.prepare import (
    HELD_OUT,
    PreparedFolder,
    annotations_in,
    prepare_anatomies,
    prepare_annotated,
    prepare_labelled,
    prepare_pool,
    torso_names,
)
from analysis.training.presets import Preset, preset_of
from analysis.training.site_data import find_cases
from analysis.training.sources import CoarseSource, FineSource
from analysis.vbnet import (
    TrainingSummary,
    VBNet,
    VBNetConfig,
    coarse_config,
    fine_config,
    load_network,
    save_network,
)

POOL = 90  # deformed torsos of the coarse stage


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """What to train and from what.

    data_dirs : folders of whole-torso label maps, of labelled CT, or of CT with an annotation of this project
    prepared_dir : where prepared cases are kept and shared between runs; the run folder when None
    start_from : weights to begin with
    iterations : instead of the preset's, for short trials
    minutes : longest time of the training itself; the learning rate falls with the clock where that is sooner
    pool : number of deformed torsos for the coarse stage
    procedural : number of procedurally built torsos; None = 8 where there are no whole-torso label maps, else none
    """

    stage: str
    preset: str
    data_dirs: tuple[Path, ...]
    out_dir: Path
    prepared_dir: Path | None = None
    start_from: Path | None = None
    resume: bool = True
    device: str = "auto"
    seed: int = 1
    iterations: int | None = None
    pool: int = POOL
    procedural: int | None = None
    workers: int = 1
    threads: int = 0
    minutes: float = math.inf


def train_segmentation(request: TrainingRequest, console: Console | None = None) -> Path:
    """Prepare the data, train, draw the curves, write `<stage>.safetensors`; returns its path.

    Raises
    ------
    ModelError : unknown stage or preset, a folder without labelled CT, or weights that do not fit
    """
    console = console or Console()
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
    torch.set_num_threads(request.threads or os.cpu_count() or 1)
    config, preset = stage_config(request.stage), preset_of(request.preset)
    request.out_dir.mkdir(parents=True, exist_ok=True)
    with _progress(console) as progress:
        source, n_cases = make_source(request, config, preset, progress)
        preset = replace(preset, iterations=request.iterations or iterations_of(preset, n_cases))
        trainer = _trainer(request, config, preset)
        task = progress.add_task(
            f"{request.stage} / {preset.name}", total=preset.iterations, completed=trainer.iteration
        )

        def report(iteration: int, record: dict[str, float]) -> None:
            progress.update(task, completed=iteration, description=f"{request.stage} loss {record['loss']:.3f}")

        settings = LoopSettings(preset.iterations, request.workers, request.minutes * 60)
        run(trainer, source, RunFolder(request.out_dir), settings, report)
    return finish(request, trainer)


def stage_config(stage: str) -> VBNetConfig:
    if stage not in ("coarse", "fine"):
        raise ModelError(f"training stage {stage!r} is unknown; expected coarse or fine")
    return coarse_config() if stage == "coarse" else fine_config()


def iterations_of(preset: Preset, n_cases: int) -> int:
    """`epochs` passes with one crop per case, in batches; or the preset's number of iterations."""
    return -(-preset.epochs * n_cases // preset.batch) if preset.epochs else preset.iterations


def make_source(
    request: TrainingRequest, config: VBNetConfig, preset: Preset, progress: Progress
) -> tuple[SampleSource, int]:
    """The stage's samples and the number of cases that they come from."""
    prepared = PreparedFolder(request.prepared_dir or request.out_dir)
    torsos = [folder for folder in request.data_dirs if torso_names(folder)]
    others = [folder for folder in request.data_dirs if folder not in torsos]
    built = request.procedural if request.procedural is not None else (0 if torsos else 8)
    anatomies = prepare_anatomies(torsos, built, prepared)
    marked = annotations_in([folder for folder in others if not _has_labels(folder)])
    labelled = [folder for folder in others if folder not in [place for place, _ in marked]]
    raws = find_cases(labelled)
    if config.stage == "fine":
        scans = [labelled_scan(raw, config.spacing_mm) for raw in raws]
        return FineSource(config, anatomies, scans, preset.real_share, request.seed), len(anatomies) + len(scans)
    task = progress.add_task("deforming torsos", total=request.pool)
    update: Callable[[int], None] = lambda done: progress.update(task, completed=done)  # noqa: E731
    pool = prepare_pool(anatomies, request.pool, config, prepared, update)
    real = prepare_labelled(raws, config, prepared) + prepare_annotated(marked, prepared)
    source = CoarseSource(config, pool[HELD_OUT:], pool[:HELD_OUT], real, preset.real_share, request.seed)
    return source, len(pool) - HELD_OUT + len(real)


def _has_labels(folder: Path) -> bool:
    return any(folder.glob("*labels.nii.gz")) or any(folder.glob("*seg-vert*"))


def _trainer(request: TrainingRequest, config: VBNetConfig, preset: Preset) -> Trainer:
    device = request.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(config, preset, device, request.seed)
    if request.start_from is not None:
        start_from(trainer, load_network(request.start_from).network)
    if request.resume:
        read_checkpoint(trainer, RunFolder(request.out_dir))
    return trainer


def start_from(trainer: Trainer, given: VBNet) -> list[str]:
    """Take over every weight that means the same; returns the names that were left as they are.

    Heads count as the same when their classes agree; a first layer with more input channels keeps its own for these.
    """
    theirs, own = given.state_dict(), trainer.network.state_dict()
    same_heads = [head.name for head in given.config.heads if head in trainer.config.heads]
    taken = {}
    for name, value in theirs.items():
        if name.startswith("heads.") and name.split(".")[1] not in same_heads:
            continue
        if name == "stem.0.weight" and value.shape[1] < own[name].shape[1]:
            value = torch.cat((value, own[name][:, value.shape[1] :]), dim=1)
        if name in own and own[name].shape == value.shape:
            taken[name] = value
    for target in (trainer.network, trainer.average):
        target.load_state_dict(taken, strict=False)
    return [name for name in own if name not in taken]


def finish(request: TrainingRequest, trainer: Trainer) -> Path:
    """Curves and weights of a finished (or interrupted) run."""
    folder = RunFolder(request.out_dir)
    draw_curves(folder.history, request.out_dir / "curves.png", f"{request.stage}, preset {request.preset}")
    history = read_history(folder.history)
    metrics = tuple((name, float(points[-1, 1])) for name, points in history.items() if name.startswith("dice "))
    data = tuple(folder.name for folder in request.data_dirs)
    summary = TrainingSummary(request.preset, trainer.iteration, data, metrics)
    path = request.out_dir / f"{request.stage}.safetensors"
    save_network(path, trainer.average, replace(trainer.config, training=summary))
    return path


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, refresh_per_second=0.5,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train one stage of the vertebra segmentation.")
    parser.add_argument("--stage", choices=("coarse", "fine"), required=True)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--data", type=Path, action="append", default=[], help="folder of training data; repeatable")
    parser.add_argument("--procedural", type=int, help="number of procedural torsos; 8 where no label map is given")
    parser.add_argument("--pool", type=int, default=POOL, help="deformed torsos of the coarse stage")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--prepared", type=Path, help="folder of prepared cases, shared between runs")
    parser.add_argument("--start-from", type=Path, help="weights to begin with")
    parser.add_argument("--fresh", action="store_true", help="ignore a checkpoint in the run folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--workers", type=int, default=1, help="processes that paint ahead; 0 paints between steps")
    parser.add_argument("--threads", type=int, default=0, help="processor cores to use; 0 for all")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end the training after this time")
    a = parser.parse_args(arguments)
    request = TrainingRequest(
        a.stage, a.preset, tuple(a.data), a.out, a.prepared, a.start_from, not a.fresh, a.device, a.seed, a.iterations,
        pool=a.pool, procedural=a.procedural, workers=a.workers, threads=a.threads, minutes=a.minutes,
    )  # fmt: skip
    Console().print(f"weights: {train_segmentation(request)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
