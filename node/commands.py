"""The command line: `qct-node COMMAND --help`.

Exit codes: 0 done (a patient result was reported, a calibration was accepted), 1 fault, 2 usage or configuration,
3 refused with a stated reason. Modules are imported inside the commands, so that `check-config` and `--help` answer at
once without loading the networks.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from analysis.errors import AnalysisError, ConfigError, QctError
from node.process_memory import keep_freed_memory

FAULT, USAGE, REFUSED = 1, 2, 3
CONSOLE = Console(stderr=True)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="CT scans in, bone density out. Exit codes: 0 done, 1 fault, 2 usage or configuration, 3 refused.",
)
simulate_app = typer.Typer(
    no_args_is_help=True, help="Write simulated CT series in DICOM with known truth beside them."
)
train_app = typer.Typer(no_args_is_help=True, help="Train the networks or the radiomics model.")
app.add_typer(simulate_app, name="simulate")
app.add_typer(train_app, name="train")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="config.yaml; default: ./config.yaml, else defaults")
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="folder (or file) to write")]
LikeOption = Annotated[Path | None, typer.Option("--like", help="take the DICOM headers over from this real CT series")]


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn the project's errors into one line on stderr and the documented exit code."""
    try:
        yield
    except ConfigError as error:
        CONSOLE.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(USAGE) from error
    except AnalysisError as error:
        show((error,))
        raise typer.Exit(REFUSED) from error
    except (QctError, OSError) as error:
        CONSOLE.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(FAULT) from error


def load(config: Path | None) -> Any:
    from node.config import load_config_or_default

    return load_config_or_default(config)


def show(reasons: Iterable[Any]) -> None:
    """What was refused or flagged, and what to do about it."""
    from analysis.refusals import advice

    for reason in reasons:
        CONSOLE.print(f"{reason.code}: {reason.text}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        CONSOLE.print(f"  -> {advice(reason.code)}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def serve(config: ConfigOption = None) -> None:
    """Run the node until SIGTERM. Under systemd it says READY when port, database and models are in order."""
    with exit_codes():
        from node.service import main

        raise typer.Exit(main(config))


@app.command()
def demo(
    out: OutOption = Path("demo-output"),
    patients: Annotated[int, typer.Option(help="how many simulated patients to send")] = 3,
) -> None:
    """Run the whole node on loopback: phantom scans and CT in, SEG and SR back in a small PACS."""
    with exit_codes():
        from node.demo import run_demo

        raise typer.Exit(run_demo(out, patients))


@app.command()
def analyse(
    folder: Annotated[Path, typer.Argument(exists=True, help="folder with one CT study or series in DICOM")],
    out: OutOption,
    phantom: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="folder of one phantom scan; may be given several times"),
    ] = None,
    stored: Annotated[
        bool, typer.Option("--stored", help="calibrate as the configured node would, from its database (read only)")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Measure one study offline, without network: report.json, DICOM results and pictures go to OUT."""
    with exit_codes():
        from node.offline import analyse_folder, with_phantom_scans, with_stored_calibrations

        if stored and phantom:
            raise ConfigError("found --phantom and --stored; expected one: scans of this run, or what the node stored")
        keep_freed_memory()
        site = load(config)
        as_study = with_stored_calibrations(site) if stored else with_phantom_scans(tuple(phantom or ()), site)
        result = analyse_folder(folder, as_study, out, site)
        show(result.reasons)
        raise typer.Exit(0 if result.status == "reported" else REFUSED)


@app.command()
def calibrate(
    folder: Annotated[Path, typer.Argument(exists=True, help="folder with one phantom scan in DICOM")],
    out: OutOption,
    stored: Annotated[
        bool, typer.Option("--stored", help="judge it against the scans in the node's database (read only)")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Measure one phantom scan offline: calibration.json and the DICOM answer go to OUT."""
    with exit_codes():
        from node.offline import calibrate_folder
        from node.stored_calibrations import judge_stored

        site = load(config)
        accepted, found = calibrate_folder(folder, out, site, judge_stored(site) if stored else None)
        show(found)
        raise typer.Exit(0 if accepted else REFUSED)


@app.command()
def segment(
    source: Annotated[
        Path, typer.Argument(exists=True, help="folder with one CT series in DICOM, or one CT volume *.nii.gz in HU")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="label map to write, *.nii.gz (VerSe numbering), or a folder for it")
    ],
    config: ConfigOption = None,
) -> None:
    """Outline and name the vertebrae: labels.nii.gz, labels_body.nii.gz and segment.json.

    The maps lie in the geometry of the input. Nothing but sound geometry is asked of the images; what would forbid a
    density (an unstated unit, lossy compression) is said.
    """
    with exit_codes():
        from node.offline import segment_source

        keep_freed_memory()
        show(segment_source(source, out, load(config)).flags)


@app.command()
def status(
    config: ConfigOption = None,
    json_output: Annotated[bool, typer.Option("--json", help="for a monitoring system; no patient data")] = False,
) -> None:
    """Show what needs attention, what was received, why it waits, what was reported and sent, and each calibration."""
    with exit_codes():
        from node.status import show_status

        show_status(load(config), json_output)


@app.command()
def requeue(
    what: Annotated[str, typer.Argument(help="a StudyInstanceUID, or 'outbox' for undelivered objects")],
    config: ConfigOption = None,
) -> None:
    """Analyse a study again, or as it is if it still waits for images; or send undelivered objects again."""
    with exit_codes():
        from node.status import requeue_work

        CONSOLE.print(requeue_work(load(config), what))


@app.command()
def send(
    folder: Annotated[Path, typer.Argument(help="folder with DICOM files")],
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 11112,
    aet: Annotated[str, typer.Option(help="called AE title")] = "QCT-NODE",
    calling: Annotated[str, typer.Option(help="calling AE title")] = "QCT-SEND",
) -> None:
    """Push a folder of DICOM files to an application entity."""
    with exit_codes():
        from node.send_folder import Peer, send_folder

        sent = send_folder(folder, Peer(host, port, aet, calling))
        CONSOLE.print(f"{sent.sent} sent, {len(sent.failed)} failed")
        for path, why in sent.failed:
            CONSOLE.print(f"  {path.name}: {why}", markup=False)
        raise typer.Exit(FAULT if sent.failed else 0)


@app.command("check-config")
def check_config(config: Annotated[Path, typer.Argument(help="the file to check")] = Path("config.yaml")) -> None:
    """Check a configuration file; one line per fault, exit code 2."""
    with exit_codes():
        from node.config import load_config

        load_config(config)
        CONSOLE.print(f"{config}: in order")


@app.command()
def doctor(config: ConfigOption = None) -> None:
    """Ask each configured PACS what it accepts; check disk, clock, models and database."""
    with exit_codes():
        from node.doctor import show_doctor

        raise typer.Exit(0 if show_doctor(load(config)) else FAULT)


@app.command()
def conformance(config: ConfigOption = None) -> None:
    """Print the DICOM Conformance Statement of the running configuration (PS3.2 Annex N order)."""
    with exit_codes():
        from node.conformance_statement import print_conformance

        print_conformance(load(config))


@app.command()
def calibrations(
    config: ConfigOption = None,
    plot: Annotated[Path | None, typer.Option(help="folder for Levey-Jennings and CUSUM charts as PNG")] = None,
    declare: Annotated[str | None, typer.Option(help="declare this key (number in the list) commissioned")] = None,
    new_epoch: Annotated[
        str | None, typer.Option(help="the scanner of this key changed (tube, service): earlier scans end")
    ] = None,
    since: Annotated[str | None, typer.Option(help="when it changed, as 2026-05-01T07:30; default now")] = None,
    reason: Annotated[str, typer.Option(help="why it is declared; recorded")] = "",
) -> None:
    """List calibration keys with states, ages and when the next scan is due, and what the site declared."""
    with exit_codes():
        from node.calibration_list import CalibrationRequest, show_calibrations

        show_calibrations(load(config), CalibrationRequest(plot, declare, new_epoch, since, reason))


@app.command()
def cohort(config: ConfigOption = None) -> None:
    """Show how many patients the node's own cohort holds per class, scanner and month."""
    with exit_codes():
        from node.train_radiomics import show_cohort

        show_cohort(load(config))


@simulate_app.command("phantom")
def simulate_phantom(
    out: OutOption,
    like: LikeOption = None,
    serial: Annotated[str, typer.Option(help="serial of a phantom in the configuration")] = "4541A",
    kvp: Annotated[float | None, typer.Option(help="tube voltage; default: from --like, else 120")] = None,
    slices: Annotated[int, typer.Option()] = 40,
    noise_hu: Annotated[float, typer.Option()] = 12.0,
    acquired: Annotated[datetime | None, typer.Option(help="UTC; default: two days before --like, else now")] = None,
    seed: Annotated[int, typer.Option()] = 1,
    config: ConfigOption = None,
) -> None:
    """Write one phantom scan as DICOM CT into OUT, and its truth beside it as OUT.truth.json."""
    with exit_codes():
        from node.simulate import PhantomOrder, write_phantom

        write_phantom(PhantomOrder(out, like, serial, kvp, slices, noise_hu, acquired, seed), load(config))


@simulate_app.command("patient")
def simulate_patient(
    out: OutOption,
    like: LikeOption = None,
    bmd: Annotated[float, typer.Option(help="true mean trabecular density of L1 and L2, mg/cm3")] = 110.0,
    levels: Annotated[str, typer.Option(help="what the volume shows, head to feet, for example T10-S")] = "T10-S",
    thickness_mm: Annotated[float, typer.Option()] = 1.25,
    contrast: Annotated[bool, typer.Option(help="portal venous contrast")] = False,
    acquired: Annotated[datetime | None, typer.Option(help="UTC; default: as --like, else now")] = None,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Write one simulated patient as DICOM CT into OUT; beside it OUT.truth.json and OUT.labels.nii.gz."""
    with exit_codes():
        from node.simulate import PatientOrder, write_patient

        write_patient(PatientOrder(out, like, bmd, levels, thickness_mm, contrast, acquired, seed))


@train_app.command("segmentation")
def train_segmentation(
    stage: Annotated[str, typer.Option(help="coarse or fine")],
    data: Annotated[list[Path], typer.Option(help="folder: torso label maps, CT + label NIfTI (VerSe), or DICOM SEG")],
    out: OutOption = Path("runs/segmentation"),
    preset: Annotated[str, typer.Option(help="'seed' is the published setting of the coarse stage")] = "default",
    start_from: Annotated[Path | None, typer.Option(help="weights to begin with")] = None,
    resume: Annotated[bool, typer.Option(help="go on from the run's checkpoint")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    iterations: Annotated[int | None, typer.Option(help="instead of the preset's, for a short trial")] = None,
    minutes: Annotated[float, typer.Option(help="end the training after this time")] = math.inf,
    workers: Annotated[int, typer.Option(help="processes that paint ahead; some seven keep a card busy")] = 1,
) -> None:
    """Train the coarse or fine VB-Net on CT simulated from label maps and on labelled CT."""
    with exit_codes():
        from analysis.training.segmentation import TrainingRequest
        from analysis.training.segmentation import train_segmentation as train

        keep_freed_memory()
        request = TrainingRequest(
            stage, preset, tuple(data), out, start_from=start_from, resume=resume, device=device, iterations=iterations,
            workers=workers, minutes=minutes,
        )  # fmt: skip
        CONSOLE.print(f"weights: {train(request, CONSOLE)}", markup=False)


@train_app.command("radiomics")
def train_radiomics(
    out: OutOption = Path("runs/radiomics"),
    features: Annotated[
        Path | None, typer.Option(help="CSV of features and labels; default: the node's own cohort")
    ] = None,
    signature: Annotated[
        str, typer.Option(help="'stepwise' (RFE, mRMR, LASSO) or 'seed' (the published six)")
    ] = "stepwise",
    activate: Annotated[
        bool, typer.Option(help="put the model into service if it passes the configured floor")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Build the three-class radiomics model; refuses with numbers when there is too little data."""
    with exit_codes():
        from node.train_radiomics import train_model

        train_model(load(config), out, features, signature, activate)


if __name__ == "__main__":
    app()
