"""The command line: one verb a function, each loading what it needs when it runs."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from tinyssl import __version__
from tinyssl.errors import JobError, TinysslError, UsageError, one_line
from tinyssl.files import in_home, typed
from tinyssl.lines import as_shown

_OVERRIDE = re.compile(r"[a-z_]+\.[a-z0-9_.]+=")
_BARE = re.compile(r"([a-z_]+)=(.*)", re.DOTALL)
_SPINS = "3000"


class _Verbs(click.Group):
    """Shows the verbs in the order in which a user meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="tinyssl %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Pretrain a small image encoder on your own pictures, and see honestly what it is worth.

    \b
    tinyssl demo                               a complete example in minutes
    tinyssl checks pictures/                   what is in the folder
    tinyssl pretrain pictures/ --out runs/mine
    tinyssl eval runs/mine --labels labels.csv
    tinyssl select runs/mine pictures/ --budget 50 --out to_label.csv
    tinyssl finetune runs/mine --labels labels.csv
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a verb and turns errors into one line and an exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    _log_to_stderr()
    _print_any_name()
    _wait_politely()
    try:
        _refuse_empty(given)
        cli.main(given, prog_name="tinyssl", standalone_mode=False)
    except click.ClickException as error:
        _fail(" ".join(error.format_message().split()) + _see_help(error), error.exit_code)
    except TinysslError as error:
        _raise_if_debug(given)
        _fail(str(error), error.exit_status)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; what was finished before is kept", 130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has seen enough
        sys.exit(141)
    except OSError as error:
        _raise_if_debug(given)
        _fail(f"cannot use {error.filename or 'a file'}: {error.strerror or error}", 1)
    except Exception as error:
        _raise_if_debug(given)
        told = "a fault of tinyssl; tinyssl --debug ... shows where"
        _fail(f"{type(error).__name__}: {error} ({told})", 1)


def _refuse_empty(given: Sequence[str]) -> None:
    """Raises UsageError for what an unset variable leaves; as a path it is the current folder."""
    for number, argument in enumerate(given, 1):
        option, equals, value = argument.partition("=")
        if not argument or (option.startswith("--") and equals and not value):
            shown = argument or f"argument {number}"
            raise UsageError(f"{shown} is empty, as with an unset variable; give a value")


def _wait_politely() -> None:
    """Lets torch's threads give up the core soon while they wait for each other (GNU OpenMP).

    Else they spin on the core that the thread they wait for needs, as soon as other work has the
    others, and a run all but stands still. Alone it costs 4 %. To be set before torch is loaded;
    what a user has set stays.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def _print_any_name() -> None:
    """Shows what a terminal's encoding lacks as escapes; standard error has them by default.

    In the locale C Python keeps odd bytes of names instead (surrogateescape), which fails at ±.
    """
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        narrow = out.encoding.lower() != "utf-8"
        if out.errors == "strict" or (narrow and out.errors == "surrogateescape"):
            out.reconfigure(errors="backslashreplace")


def _see_help(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f" (see: {context.command_path} --help)" if context is not None else ""


def _raise_if_debug(given: Sequence[str]) -> None:
    if given and given[0] == "--debug":
        raise


def _fail(text: str, status: int) -> None:
    click.echo(f"tinyssl: {one_line(text)}", err=True)
    sys.exit(status)


def _log_to_stderr() -> None:
    logger = logging.getLogger("tinyssl")
    if not any(isinstance(handler, _Echo) for handler in logger.handlers):
        logger.setLevel(logging.INFO)
        logger.addHandler(_Echo(logging.INFO))


class _Echo(logging.Handler):
    """Prints log lines to standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        text = as_shown(record)
        if "tinyssl.console" in sys.modules:
            from tinyssl.console import say

            say(text)
        else:
            click.echo(text, err=True)


class _Written(click.Path):
    """What is written: no shell puts the user's folder for `~` in `--out=~/runs/mine`."""

    def convert(self, *given: Any) -> Any:
        path = str(super().convert(*given))
        return str(in_home(path)) if path.startswith("~") else path  # s3:// keeps its slashes


_OUT = _Written()
_workers = click.option(
    "--workers",
    type=click.IntRange(0),
    default=0,
    help="Threads that decode.  [default: one a core]",
)
_seed = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything random."
)

_device = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N."
)
_recipe = click.option(
    "--recipe", default="mobilenetv3-small", show_default=True, help="Name or YAML file."
)


def _recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The shortcuts for settings that every training verb has."""
    for option in reversed(
        [
            click.option("--epochs", help="Epochs, or auto.  [run.epochs]"),
            click.option("--batch-size", help="Pictures a step.  [optim.batch_size]"),
            click.option("--image-size", help="Pixels a side.  [data.image_size]"),
            click.option("--device", help="auto, cpu, cuda, cuda:N.  [run.device]"),
            click.option("--workers", help="Threads, or processes.  [run.workers]"),
            click.option("--seed", help="Of everything random.  [run.seed]"),
        ]
    ):
        command = option(command)
    return command


def _split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tells `section.key=value` settings from pictures' paths."""
    overrides = [a for a in arguments if _OVERRIDE.match(a) and not os.path.exists(a)]
    data = [a for a in arguments if a not in overrides]
    for given in data:
        bare = _BARE.fullmatch(given)
        if bare and not os.path.exists(given):
            _refuse_bare(given, *bare.groups())
    return data, overrides


def _refuse_bare(given: str, name: str, value: str) -> None:
    """Raises UsageError where a setting was meant that lacks its section."""
    verb = click.get_current_context().command
    if any(parameter.name == name for parameter in verb.params):
        meant = [f"--{name.replace('_', '-')} {typed(value)}"]
    else:
        from tinyssl.config import Recipe, keys_named
        from tinyssl.finetune_config import FinetuneRecipe

        schema = FinetuneRecipe if verb.name in ("finetune", "eval") else Recipe
        meant = [typed(f"{key}={value}") for key in keys_named(name, schema)]
    if meant:
        raise UsageError(f"no folder or file {given}; for the setting give {' or '.join(meant)}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(name) for name in _names(text)]
    except ValueError:
        raise UsageError(f"{option}: got {text!r}; give numbers with commas between") from None


@cli.command(short_help="Pretrain an encoder on unlabeled pictures.")
@click.argument("arguments", nargs=-1, metavar="DATA... [SECTION.KEY=VALUE...]")
@_recipe
@click.option("--out", type=_OUT, help="The run folder.  [default: runs/RECIPE]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option("--holdout", help="Labels whose test pictures are left out.  [data.holdout]")
@_recipe_options
def pretrain(
    arguments: tuple[str, ...],
    recipe: str,
    out: str | None,
    resume: bool,
    overwrite: bool,
    **options: Any,
) -> None:
    """Pretrain an encoder on the pictures in DATA: folders at any depth, picture files, or .txt
    and .csv lists of paths. Labels and class folders are ignored.

    Ctrl-C finishes the step and saves; --resume goes on with the same result.

    \b
    tinyssl pretrain pictures/
    tinyssl pretrain a/ b/ list.txt --recipe resnet18 --out runs/mine --epochs 100
    tinyssl pretrain cells/ augment.preset=industrial loss.temperature=0.1
    tinyssl pretrain cells/ --holdout labels.csv
    tinyssl pretrain --resume --out runs/mine
    """
    from tinyssl.own_pictures import holdout_of
    from tinyssl.pretraining import pretrain as run

    data, overrides = _split_arguments(arguments)
    path = run(
        data, recipe, out, overrides=overrides, resume=resume, overwrite=overwrite, **options
    )
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        labels = _from_here(holdout_of(path) or "labels.csv")
        click.echo(f"next: tinyssl eval {typed(path)} --labels {typed(labels)}")


@cli.command("eval", short_help="Judge an encoder on labeled pictures.")
@click.argument("arguments", nargs=-1, metavar="RUN [SECTION.KEY=VALUE...]")
@click.option(
    "--labels", help="CSV path,label[,split], or class folders, also in train/ and test/."
)
@click.option("--train", help="Folder of class folders to fit classifiers on.")
@click.option("--test", help="Folder of class folders to measure on.")
@click.option("--baseline", "baselines", multiple=True, help="Another run or weight file.")
@click.option(
    "--draws",
    type=click.IntRange(min=10),
    default=10,
    show_default=True,
    help="Draws of labels for few-shot.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of draws and splits."
)
@_device
@click.option("--out", type=_OUT, help="Result file.  [default: RUN/eval.json]")
@click.option("--shots", help="Draw the label curve at these labels a class: 1,2,5,10,20,50.")
@click.option("--methods", default="linear,finetune,scratch", show_default=True, help="Its lines.")
@click.option("--select", default="random,kmeans", show_default=True, help="Who chooses them.")
@click.option("--curve-draws", default=5, show_default=True, help="Choices for each point.")
def evaluate(
    arguments: tuple[str, ...],
    shots: str | None,
    methods: str,
    select: str,
    curve_draws: int,
    **options: Any,
) -> None:
    """Judge the encoder in RUN: k-NN, linear probe and few-shot accuracy on held-out pictures,
    beside raw pixels, descriptors of pictures, and the same network with random weights.

    Hyper-parameters of the classifiers are chosen on the training pictures only.

    --shots also draws accuracy over the number of labels, as label_curve.png: a linear classifier
    on the frozen encoder, recipe few-label, and few-label from random weights (scratch); pictures
    chosen at random or by any method of tinyssl select. Networks take minutes a point on a CPU;
    SECTION.KEY=VALUE changes the recipe.

    \b
    tinyssl eval runs/mine --labels labels.csv
    tinyssl eval runs/mine --train labeled/train --test labeled/test
    tinyssl eval runs/mine --labels labels.csv --baseline runs/other
    tinyssl eval runs/mine --labels labels.csv --shots 1,2,5,10,20,50
    tinyssl eval runs/mine --labels labels.csv --shots 5,10 network.views=4000
    """
    from tinyssl.console import print_result
    from tinyssl.curve_plot import curve_table
    from tinyssl.evaluation import evaluate as judge
    from tinyssl.evaluation import table
    from tinyssl.label_curve import CurveWishes

    runs, settings = _split_arguments(arguments)
    if len(runs) != 1:
        raise UsageError(f"eval takes one RUN, got {len(runs)}; labels go to --labels")
    curve = None
    if shots is not None:
        curve = CurveWishes(
            _numbers("--shots", shots), _names(methods), _names(select), curve_draws, settings
        )
    elif settings:
        raise UsageError(f"{settings[0]} is for the label curve; give --shots too")
    result = judge(runs[0], curve=curve, **options)
    print_result(table(result))
    if curve is not None:
        print_result(curve_table(result["curve"]))


@cli.command(short_help="Choose the pictures to label first.")
@click.argument("run")
@click.argument("data", nargs=-1, required=True)
@click.option("--budget", type=int, required=True, help="How many pictures.")
@click.option("--out", type=_OUT, required=True, help="The list to fill in, a .csv.")
@click.option(
    "--method", default="kmeans", show_default=True, help="kmeans, typiclust, kcenter or random."
)
@click.option("--labeled", help="CSV path,label of earlier rounds.")
@click.option(
    "--features", type=_OUT, help="Keep features here for the next round; used if it is there."
)
@click.option("--copy-to", type=_OUT, help="A new folder for copies of the chosen ones.")
@_seed
@_workers
@_device
@click.option("--overwrite", is_flag=True, help="Replace the list in --out.")
def select(run: str, data: tuple[str, ...], budget: int, out: str, **options: Any) -> None:
    """Choose the pictures in DATA whose labels will teach most, by the encoder in RUN (or in a
    bundle). Writes a CSV path,label,order to fill in, and a PNG that shows the choice. Exact
    copies are never both chosen.

    --copy-to puts copies into a folder, for labelling tools that take one, named after their
    order: 07-name.png.

    \b
    kmeans     the picture nearest to the centre of each of as many clusters
    typiclust  the most typical one of each (arXiv:2202.02794)
    kcenter    farthest from all that are chosen (arXiv:1708.00489)
    random     any

    \b
    tinyssl select runs/mine pictures/ --budget 50 --out to_label.csv
    tinyssl select runs/mine pictures/ --budget 50 --labeled to_label.csv \\
        --out round2.csv                    (the first round's labels come along)
    """
    from tinyssl.selection import select as choose

    chosen = choose(run, data, budget, out, **options)
    click.echo(f"wrote {chosen.out} and {chosen.sheet}: {len(chosen.paths):,} pictures")
    if options["copy_to"] is not None:
        click.echo(f"copied them to {options['copy_to']}")
    whose = run if os.path.exists(os.path.join(run, "encoder.json")) else "RUN"  # no bundle
    told = f"tinyssl finetune {typed(whose)} --labels {typed(chosen.out)}"
    click.echo(f"next: fill in the labels, then {told}")


@cli.command(short_help="Write the features of pictures to a file.")
@click.argument("run")
@click.argument("data", nargs=-1, required=True)
@click.option("--out", type=_OUT, required=True, help="A .parquet, .npz or .csv file.")
@click.option("--raw", is_flag=True, help="Do not scale features to unit length.")
@click.option("--dtype", default="float32", show_default=True, help="float32 or float16.")
@click.option("--nearest", multiple=True, metavar="QUERY", help="Find pictures like this one.")
@click.option(
    "--k", type=click.IntRange(1), default=10, show_default=True, help="How many --nearest finds."
)
@click.option("--duplicates", is_flag=True, help="List near copies, in groups.")
@click.option(
    "--threshold", type=float,
    help="Cosine of near copies.  [default: 3 times nearer than nearest pictures usually are]",
)  # fmt: skip
@click.option("--outliers", is_flag=True, help="List pictures by how little they fit.")
@click.option("--batch-size", default=64, show_default=True, help="Pictures at a time.")
@_workers
@_device
@click.option("--overwrite", is_flag=True, help="Replace another file in --out.")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="ray: by a cluster.",
)  # fmt: skip
def embed(
    run: str,
    data: tuple[str, ...],
    out: str,
    engine: str,
    nearest: tuple[str, ...],
    k: int,
    duplicates: bool,
    threshold: float | None,
    outliers: bool,
    **options: Any,
) -> None:
    """Write path, digest and features of the pictures in DATA, by the encoder in RUN: a run
    folder or a bundle, with the same numbers. The features of a picture have length 1, except
    with --raw (which a bundle allows if it was exported with --raw-features).

    Any number of pictures: Ctrl-C keeps finished chunks in OUT.parts/, the same command goes on.
    What cannot be read is listed in OUT.skipped.csv.

    --nearest, --duplicates and --outliers write a CSV beside OUT, but not over one with columns of
    yours. Cosines are of features less their mean: in one domain all plain ones look high.

    --engine ray spreads a bundle's work over the Ray cluster in RAY_ADDRESS, or the cores of this
    machine; DATA and OUT may be addresses such as s3://bucket/folder, and OUT is a folder of
    Parquet files.

    \b
    tinyssl embed runs/mine pictures/ --out features.parquet
    tinyssl embed bundle s3://pictures/new --out s3://features/new --engine ray
    tinyssl embed bundle pictures/ --out features.npz --nearest odd.png
    tinyssl embed runs/mine pictures/ --out features.npz --duplicates --outliers
    """
    from tinyssl.embedding import embed as write
    from tinyssl.embedding import read_some
    from tinyssl.extraction import open_extractor
    from tinyssl.lookups import COLUMNS, check_wishes, find_duplicates, find_nearest, find_outliers

    wishes = (nearest, duplicates, outliers)
    lists = [name for name, wish in zip(COLUMNS, wishes, strict=True) if wish]
    if engine == "ray":
        _embed_with_ray(run, data, out, lists, **options)
        return
    check_wishes(out, lists, nearest, k, threshold)
    if nearest:
        read_some(open_extractor(run, raw=options["raw"], device=options["device"]), nearest)
    embedded = write(run, data, out, **options)
    click.echo(f"{out}: {embedded.pictures:,} x {embedded.extractor.width:,} features")
    if not lists:
        return
    features = embedded.read()
    if nearest:
        found = find_nearest(features, out, embedded.extractor, nearest, k)
        _print_nearest(found.rows)
        click.echo(f"wrote {found.out}: {found.told}")
    if duplicates:
        found = find_duplicates(features, out, threshold)
        click.echo(f"wrote {found.out}: {found.told}")
    if outliers:
        found = find_outliers(features, out)
        click.echo(f"wrote {found.out}: {found.told}")


def _embed_with_ray(
    run: str,
    data: tuple[str, ...],
    out: str,
    lists: Sequence[str],
    raw: bool,
    device: str,
    **options: Any,
) -> None:
    from tinyssl.ray_embedding import embed_with_ray

    if lists:
        raise UsageError("--nearest, --duplicates and --outliers go with --engine local")
    if raw:
        raise UsageError("--raw goes with --engine local")
    told = embed_with_ray(run, data, out, device="cpu" if device == "auto" else device, **options)
    click.echo(f"{out}: features of {told.pictures:,} pictures, {told.skipped:,} skipped")


def _print_nearest(rows: Sequence[tuple[Any, ...]]) -> None:
    for query, rank, path, cosine in rows:
        if rank == 1:
            click.echo(f"nearest to {one_line(_from_here(query))}")
        click.echo(f"{rank:4}  {cosine:7.4f}  {one_line(_from_here(path))}")


def _from_here(path: str) -> str:
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


@cli.command(short_help="Make a classifier from few labels.")
@click.argument("arguments", nargs=-1, metavar="RUN [SECTION.KEY=VALUE...]")
@click.option(
    "--labels", required=True, help="CSV path,label[,split], or class folders, also in train/."
)
@click.option("--recipe", default="auto", show_default=True, help="Name, YAML file, or auto.")
@click.option("--out", type=_OUT, help="The new run folder.  [default: RUN-cls]")
@click.option(
    "--unlabeled", multiple=True, help="More pictures of the domain.  [default: those of the run]"
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in --out.")
@click.option("--device", help="auto, cpu, cuda, cuda:N.  [run.device]")
@click.option("--workers", help="Threads that decode.  [run.workers]")
@click.option("--seed", help="Of everything random.  [run.seed]")
def finetune(
    arguments: tuple[str, ...],
    labels: str,
    recipe: str,
    out: str | None,
    unlabeled: tuple[str, ...],
    overwrite: bool,
    **options: Any,
) -> None:
    """Make a classifier from the encoder in RUN and few labels; 1 to 50 a class are enough.

    auto takes the better of few-label-linear and few-label-semi on held-out folds of the labels, or
    few-label if it leads them by more than a standard error, and says why. The result is a run
    folder of its own: eval, predict, export and finetune take it.

    \b
    tinyssl finetune runs/mine --labels labels.csv
    tinyssl finetune runs/mine --labels labeled/ --recipe few-label --out runs/cls
    tinyssl finetune runs/mine --labels labels.csv network.views=16000
    """
    from tinyssl.console import print_result
    from tinyssl.finetuning import finetune as run_it
    from tinyssl.finetuning import read_result, table

    runs, overrides = _split_arguments(arguments)
    if len(runs) != 1:
        raise UsageError(f"finetune takes one RUN, got {len(runs)}; pictures go to --labels")
    path = run_it(
        runs[0],
        labels,
        recipe,
        out,
        unlabeled=unlabeled or None,
        overrides=overrides,
        overwrite=overwrite,
        **options,
    )
    result = read_result(path)
    if result["held_out"]:
        print_result(table(result))
    click.echo(f"next: tinyssl predict {typed(path)} pictures/")


@cli.command(short_help="Write the classes of pictures to a CSV.")
@click.argument("run")
@click.argument("pictures", nargs=-1, required=True)
@click.option(
    "--out", type=_OUT, default="predictions.csv", show_default=True, help="The CSV to write."
)
@_device
@click.option("--overwrite", is_flag=True, help="Replace the file in --out.")
def predict(run: str, pictures: tuple[str, ...], out: str, device: str, overwrite: bool) -> None:
    """Classify PICTURES (folders at any depth, files, .txt and .csv lists) with the fine-tuned
    RUN: the columns path, label, probability, and p(CLASS) for every class.

    Pictures that cannot be read are told and left out; then the exit status is 1.

    \b
    tinyssl predict runs/mine-cls pictures/
    tinyssl predict runs/mine-cls a.png b.png --out two.csv
    """
    from tinyssl.predicting import predict as classify

    done = classify(run, pictures, out, device=device, overwrite=overwrite)
    click.echo(f"wrote {done.out}: {done.pictures:,} pictures")
    if done.skipped:
        raise JobError(f"{len(done.skipped)} pictures could not be read; all others are in {out}")


@cli.command(short_help="Write a bundle that runs without torch.")
@click.argument("run")
@click.option(
    "--target",
    default="onnx",
    show_default=True,
    help="onnx, onnx-fp16, onnx-int8, tensorrt, jetson or mobile.",
)
@click.option("--out", type=_OUT, help="The bundle's folder.  [default: RUN-bundle]")
@click.option("--pictures", help="Measure parity on these.  [default: those of the run]")
@click.option("--calibration", help="Calibrate int8 on these.  [default: as --pictures]")
@click.option("--labels", help="Class folders or CSV: int8 may lose 1 point of k-NN there.")
@click.option("--raw-features", is_flag=True, help="Do not scale features to unit length.")
@click.option("--any-size", is_flag=True, help="Leave height and width of the input open (onnx-*).")
@click.option(
    "--workspace", type=click.IntRange(1), default=1024, show_default=True,
    help="MB, of --target tensorrt.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Write int8 even if it changes features too much.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier bundle in --out.")
def export(run: str, **options: Any) -> None:
    """Export the encoder in RUN to a folder that extracts features on a device: ONNX models that
    take uint8 pictures (uint16 of a 16-bit run), a runtime of one file that needs numpy, Pillow
    and onnxruntime, and pictures with torch's features to check it by.

    Ends with a table of how far the models are from torch; too far, and nothing is written.

    \b
    tinyssl export runs/mine --out bundle
    tinyssl export runs/mine --target onnx-fp16 --out bundle
    tinyssl export runs/mine --target onnx-int8 --labels labels.csv --out bundle
    tinyssl export runs/mine --target jetson --out bundle
    tinyssl export runs/mine --target tensorrt --out bundle    (needs a GPU)
    tinyssl export runs/mine --target mobile --out bundle
    python bundle/runtime.py --check
    """
    from tinyssl.console import print_result
    from tinyssl.extras import EXPORT, need

    need(*EXPORT, extra="export")
    from tinyssl.export.exporting import export as write
    from tinyssl.export.exporting import table

    exported = write(run, **options)
    print_result(table(exported))
    program = typed(exported.out / "runtime.py")
    click.echo(f"wrote {exported.out}; next: python {program} --check")
    if options["target"] == "jetson":
        click.echo(f"on the device: python {typed(exported.out / 'build_engine.py')}")


@cli.command(short_help="Time a bundle's models on this machine.")
@click.argument("bundle")
@click.option("--batch", default="1,8", show_default=True, help="Pictures a call.")
@click.option(
    "--threads", type=click.IntRange(0), default=1, show_default=True, help="Of the CPU; 0: all."
)
@click.option("--seconds", default=2.0, show_default=True, help="For each measurement.")
def benchmark(bundle: str, batch: str, threads: int, seconds: float) -> None:
    """Time the ONNX models of BUNDLE and its engine on this machine, beside torch without
    compiling: latency, pictures/s, peak memory. Decoding is not counted, and encoder.pte, which is
    for phones, not timed. Also writes benchmark.json and .csv there.

    \b
    tinyssl benchmark bundle
    tinyssl benchmark bundle --batch 1 --threads 4
    """
    from tinyssl.console import print_result
    from tinyssl.export.benchmarking import benchmark as measure
    from tinyssl.export.benchmarking import table

    batches = _numbers("--batch", batch)
    print_result(table(measure(bundle, batches=batches, threads=threads, seconds=seconds)))


@cli.command(short_help="Write a run's report as one HTML page.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--data", multiple=True, help="Pictures to show.  [default: those of the run]")
@click.option("--labels", help="CSV path,label[,split], or a folder of class folders.")
@click.option("--out", type=_OUT, help="The page.  [default: RUN/report.html]")
@click.option("--compare", is_flag=True, help="Put several RUNs side by side.")
@click.option("--bundle", help="Of the run, for its tables.  [default: RUN-bundle]")
@click.option("--card", help="YAML with fields of the model card: title, author, data_source ...")
@click.option("--pictures", default=3000, show_default=True, help="Shown at most.")
@_workers
@_device
def report(runs: tuple[str, ...], compare: bool, out: str | None, **options: Any) -> None:
    """Write what there is to know of RUN as one HTML file that needs no network: whether it
    worked, how it trained, what the encoder sees (a map of the pictures, neighbours, clusters,
    near copies, odd ones, mistakes), its augmentation, its bundle, and a model card.

    Features are kept in RUN for the next report. --compare takes two and more runs and shows
    scores, curves and settings only; its page is compare.html if --out names no other.

    \b
    tinyssl report runs/mine
    tinyssl report runs/mine --labels labels.csv --out report.html
    tinyssl report runs/mine --data new-pictures/ --bundle bundle --card card.yaml
    tinyssl report --compare runs/mine runs/other --out compare.html
    """
    if compare:
        from tinyssl.reporting.comparison import compare as put_side_by_side

        given = [name for name in options if _was_given(name)]
        if given:
            raise UsageError(f"--compare takes only RUNs and --out; leave out --{given[0]}")
        put_side_by_side(runs, out or "compare.html")
        return
    if len(runs) != 1:
        raise UsageError(f"report takes one RUN, got {len(runs)}; several go with --compare")
    from tinyssl.reporting.command import report as write

    write(runs[0], out=out, **options)


def _was_given(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


@cli.command(short_help="Look at pictures before training.")
@click.argument("arguments", nargs=-1, metavar="DATA... [SECTION.KEY=VALUE...]")
@_recipe
@click.option("--augment", type=_OUT, help="Write a PNG of originals and views here.")
@click.option(
    "--rows", type=click.IntRange(1), default=8, show_default=True, help="Pictures in the PNG."
)
@click.option("--labels", help="CSV, or class folders: look for contradictions and leaks.")
@click.option("--list", "listed", type=_OUT, help="Write all that was found as a CSV.")
@click.option("--cache", is_flag=True, help="List the caches instead (those in DATA, if given).")
@click.option("--prune", type=click.Choice(["stale", "all"]), help="With --cache: remove these.")
def checks(
    arguments: tuple[str, ...],
    recipe: str,
    augment: str | None,
    rows: int,
    labels: str | None,
    listed: str | None,
    cache: bool,
    prune: str | None,
) -> None:
    """Look at the pictures in DATA as pretraining would read them: how many, what kind and size,
    what would be skipped and why, exact and near copies, blank pictures, a recipe that fits; and
    what the augmentation makes of them.

    With --labels also: copies with different labels, and copies in both train and test.

    \b
    tinyssl checks pictures/
    tinyssl checks pictures/ --augment views.png augment.preset=industrial
    tinyssl checks --labels labels.csv --list found.csv
    tinyssl checks --cache --prune stale
    """
    data, overrides = _split_arguments(arguments)
    if cache or prune is not None:
        from tinyssl.caches import report

        click.echo(report(None if not data else data[0], prune))
        return
    from tinyssl.checks import check

    click.echo(check(data, recipe, overrides, augment, rows, labels, listed))


@cli.command(short_help="List the recipes, or print one.")
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the bundled recipes with what each is for; with NAME, print that one.

    \b
    tinyssl recipes
    tinyssl recipes resnet18-small > mine.yaml
    """
    from tinyssl.recipe_files import purposes, recipe_text

    if name is not None:
        click.echo(recipe_text(name), nl=False)
        return
    listed = purposes()
    width = max(map(len, listed))
    for recipe, purpose in listed.items():
        click.echo(f"{recipe:<{width}}  {purpose}")


@cli.command(short_help="A complete example on 2,624 real pictures.")
@click.option("--adapt", is_flag=True, help="Start from ImageNet weights instead.")
@click.option("--out", type=_OUT, help="The run folder.  [default: runs/demo[-adapt]]")
@click.option("--epochs", help="Epochs.  [default: 60; with --adapt 5]")
@_seed
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo in --out.")
def demo(adapt: bool, out: str | None, epochs: str | None, seed: int, overwrite: bool) -> None:
    """Pretrain on the solar-cell pictures of the package elpv-dataset and judge the encoder on
    those it has not seen. Takes some minutes on two CPU cores; needs no network.

    \b
    tinyssl demo
    tinyssl demo --adapt
    """
    from tinyssl.demo import demo as run

    run(adapt=adapt, out=out, epochs=epochs, seed=seed, overwrite=overwrite)


if __name__ == "__main__":
    main()
