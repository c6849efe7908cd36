"""``sparsekern``: train, report, recipes, bench, info.

What a command needs is imported inside of it, so that ``--help`` is there at once.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from typer.core import TyperGroup

import sparsekern
from sparsekern.train.callbacks import Callback
from sparsekern.train.metrics import Row

# What a user can cause; anything else is a mistake of ours and shows its traceback.
USER_ERRORS = (ValueError, TypeError, RuntimeError, OSError)
EXIT_ERROR, EXIT_INTERRUPTED = 2, 130
REDRAW_SECONDS = 0.1  # between two drawings of the progress bars


class HouseGroup(TyperGroup):
    """Commands whose errors are one red sentence, or a traceback with ``--traceback`` anywhere."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # NOTE: typer brings its own copy of click or depends on it, so its types are not named.
        if "--traceback" in args:
            args = ["--traceback", *(arg for arg in args if arg != "--traceback")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except USER_ERRORS as error:
            if ctx.params.get("traceback"):
                raise
            errors().print(f"[red]{escape(sentence(error))}[/red]", highlight=False, soft_wrap=True)
            raise typer.Exit(EXIT_ERROR) from None
        except KeyboardInterrupt:
            errors().print("Stopped. The same command goes on from the newest checkpoint.")
            raise typer.Exit(EXIT_INTERRUPTED) from None


def sentence(error: Exception) -> str:
    """What to tell of an error: its own sentence, or one for what the system said of a file."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"Expected {error.filename} to be readable and writable. Got: {error.strerror}."
    return str(error)


app = typer.Typer(
    cls=HouseGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Sparse training of neural networks that really saves time and memory.",
)


def main() -> None:
    """Entry point of the ``sparsekern`` command."""
    app()


def errors() -> Console:
    """A console on what is standard error now (tests replace it)."""
    return Console(stderr=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sparsekern {sparsekern.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error comes from.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a bundled recipe or path of a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe key: method.density=0.02"),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds to train.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training.")] = None,
    name: Annotated[str | None, typer.Option(help="Folder of the run in RUNS.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete that folder first.")] = False,
) -> None:
    """Train a recipe's networks: dense, sparse, and a smaller dense one of equal step time.

    The same command goes on with a run that was interrupted.
    """
    from sparsekern.train.recipe_file import load_recipe
    from sparsekern.train.report import report_table
    from sparsekern.train.run import run
    from sparsekern.train.summary import read_summary

    changes = list(overrides or [])
    changes += [f"{key}={n}" for key, n in (("seeds", seeds), ("epochs", epochs)) if n is not None]
    loaded = load_recipe(recipe, changes)
    console = Console()
    with _progress(console) as progress:
        callback = ProgressCallback(progress)
        folder = run(loaded, runs, name=name, fresh=fresh, callback=callback)
        callback.close()
    console.print()
    console.print(report_table(read_summary(folder)))
    console.print(f"\nThe run is in {folder}", highlight=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metrics]}"),
        console=console,
        expand=True,
        # PERF: no thread that draws: it would take its time from the steps that are measured.
        auto_refresh=False,
    )


class ProgressCallback(Callback):
    """Draws one bar for each network and seed."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task: TaskID | None = None  # the bar that moves
        self.drawn = 0.0  # when the bars were drawn last

    def said(self, line: str) -> None:
        self.progress.console.print(line, highlight=False, soft_wrap=True)

    def started(self, network: str, seed: int, epochs: int, done: int) -> None:
        self._begin(f"{network.replace('_', ' ')}, seed {seed}".ljust(19), epochs, done)

    def epoch_ended(self, row: Row) -> None:
        if self.task is not None:
            self.progress.update(self.task, completed=row["epoch"], metrics=_metrics(row))
        if time.monotonic() - self.drawn > REDRAW_SECONDS:
            self._draw()

    def ended(self, network: str, seed: int) -> None:
        self._draw()
        self.task = None

    def measuring(self, what: str) -> None:
        self._begin(f"measuring {what}", None, 0)

    def close(self) -> None:
        """Takes away the bar of a measurement."""
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None
            self._draw()

    def _draw(self) -> None:
        self.progress.refresh()
        self.drawn = time.monotonic()

    def _begin(self, title: str, epochs: int | None, done: int) -> None:
        self.close()
        self.task = self.progress.add_task(title, total=epochs, completed=done, metrics="")
        self._draw()


def _metrics(row: Row) -> str:
    return (
        f"loss {row['train_loss']:.4f}  accuracy {100 * row['test_accuracy']:.2f} %  "
        f"density {row['density']:.3g}"
    )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or its name in RUNS.")],
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
) -> None:
    """Print the table of a finished run and draw its report.png again."""
    from sparsekern.train.metrics import MetricsLog
    from sparsekern.train.report import draw_report, report_table
    from sparsekern.train.run_folder import METRICS, REPORT
    from sparsekern.train.summary import check_rows, read_summary

    folder = run if run.is_dir() else runs / run
    if not folder.is_dir():
        raise ValueError(f"Expected RUN to be a folder, here or in {runs}. Got {str(run)!r}.")
    summary = read_summary(folder)
    rows = MetricsLog(folder / METRICS).rows()
    check_rows(summary, rows, folder / METRICS)
    draw_report(summary, rows, folder / REPORT)
    console = Console()
    console.print(report_table(summary))
    console.print(f"\nThe picture is {folder / REPORT}", highlight=False, soft_wrap=True)


@app.command()
def recipes() -> None:
    """List the bundled recipes."""
    from sparsekern.train.recipe_file import bundled_recipes, load_recipe

    table = Table.grid(padding=(0, 2))
    for name in bundled_recipes():
        table.add_row(f"[bold]{name}[/bold]", escape(load_recipe(name).description))
    Console().print(table)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    suite: Annotated[str, typer.Argument(help="Name of a benchmark suite.")],
) -> None:
    """Run a benchmark suite of a source checkout; further options go to it."""
    checkout = Path(sparsekern.__file__).resolve().parent.parent
    if not (checkout / "bench" / "run.py").is_file():
        raise ValueError(
            "Expected a source checkout with a bench folder, installed by `pip install -e .`. "
            f"Got {checkout}."
        )
    command = [sys.executable, "-m", "bench.run", suite, *context.args]
    raise typer.Exit(subprocess.run(command, cwd=checkout, check=False).returncode)


@app.command()
def info() -> None:
    """Show versions, the native libraries, GPUs, and which kernel each op uses on this machine."""
    from sparsekern.testing import devices
    from sparsekern.train.machine import gpu_facts, native_facts, op_facts, versions

    console = Console()
    facts = versions() | native_facts() | gpu_facts()
    facts.pop("isa")
    table = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        table.add_row(f"[bold]{key}[/bold]", escape(str(value)))
    console.print(table)
    console.print()
    for device in devices():
        name = "CPU" if device.type == "cpu" else "CUDA"
        ops = Table(title=f"Ops (float32, {name})", title_justify="left", title_style="bold")
        for column in ("op", "variant", "runs here", "auto"):
            ops.add_column(column)
        last = ""
        for row in op_facts(device):
            here = "yes" if row.reason is None else f"no: {row.reason}"
            op, last = ("" if row.op == last else row.op), row.op
            ops.add_row(op, row.variant, escape(here), "picks it" if row.chosen else "")
        console.print(ops)


if __name__ == "__main__":
    main()
