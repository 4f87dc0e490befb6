"""The command line: a thin skin over the library."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Column, Table

from limbeck import __version__, recipe
from limbeck.errors import InputError, LimbeckError
from limbeck.recipe.sections import nearest

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Distil a big model into a small one you can ship, and prove what was kept.\n\n"
    "Settings are given as **key=value**, with the keys of the recipe (`limbeck schema`, docs/recipe.md): "
    "`data=reviews.csv training.epochs=1`. The same command run again goes on where it stopped.\n\n"
    "Exit codes: 0 done, 1 failed part-way (run it again), 2 wrong input.",
)
out = Console()
Words = Annotated[list[str] | None, typer.Argument(metavar="[RECIPE] KEY=VALUE...", show_default=False)]


@app.command()
def distill(
    words: Words = None,
    profile: Annotated[bool, typer.Option("--profile", help="Say where the time of training goes.")] = False,
) -> None:
    """Distil a teacher into a student, measure what was kept, export, and write the report.

    RECIPE is a packaged method (`limbeck methods list`; hinton when not given) or a YAML file.

    - `limbeck distill teacher=DIR data=reviews.csv output=runs/a`

    - `limbeck distill hinton teacher=DIR data=reviews.csv student.layers=3 output=runs/a`

    - `limbeck distill teacher=[DIR1,DIR2] teacher.combine=logits data=reviews.csv output=runs/b`

    - `limbeck distill recipe.yaml stages.distill.objectives.soft_targets.temperature=4`

    - `accelerate launch --multi_gpu -m limbeck distill recipe.yaml`
    """
    from limbeck import api

    places, settings = _parts(words)
    if profile:
        settings["profile"] = True
    _show(api.distill(*places, **settings))


@app.command()
def train(words: Words = None) -> None:
    """Fine-tune a model on labels: how a teacher is made. The result is OUTPUT/model.

    - `limbeck train student=sentence-transformers/all-MiniLM-L6-v2 data=reviews.csv output=runs/teacher`
    """
    from limbeck import api

    places, settings = _parts(words)
    if "model" in settings:
        raise InputError("unknown key 'model'; the model to train is given as student=MODEL")
    if places:
        settings["recipe"] = places[0]
    _show(api.train(settings.pop("student", None), **settings))


@app.command()
def label(
    words: Words = None,
    engine: Annotated[str | None, typer.Option(help="`here`, or `ray`: workers on a Ray cluster.")] = None,
    workers: Annotated[int | None, typer.Option(help="Of Ray; one for each GPU or machine by default.")] = None,
) -> None:
    """Ask the teacher once over the transfer set and keep what it says, for any later run.

    Takes what `distill` takes; `knowledge=FOLDER` shares what is kept between runs, `knowledge=s3://...` machines.

    - `limbeck label teacher=DIR data=reviews.csv output=runs/a`

    - `limbeck label --engine ray teacher=DIR data=reviews.parquet knowledge=s3://bucket/knowledge output=runs/a`

    - `limbeck label teacher.server=https://api.example.com/v1 teacher.model=NAME teacher.key=VARIABLE student=MODEL
      data=reviews.csv output=runs/a`
    """
    from limbeck import api

    places, settings = _parts(words)
    for name, value in (("engine", engine), ("workers", workers)):
        if value is not None:
            settings[f"labelling.{name}"] = value
    store = api.label(*places, **settings)
    out.print(f"{len(store):,} examples in {store.folder}", highlight=False, soft_wrap=True)


@app.command()
def plan(
    words: Words = None,
    speedup: Annotated[float | None, typer.Option(help="Times faster than the teacher, an example at a time.")] = None,
    latency: Annotated[float | None, typer.Option(help="Milliseconds of an answer to one example, here.")] = None,
    megabytes: Annotated[float | None, typer.Option(help="Of the student's weights in float32.")] = None,
) -> None:
    """Before any training: students that could be made, what they would be, and what making them would cost.

    Takes what `distill` takes but for the student. Each is built, timed and trained for a few batches.

    - `limbeck plan teacher=DIR data=reviews.csv --speedup 3`

    - `limbeck plan teacher=DIR data=reviews.csv data.corpus=text.txt --megabytes 40 --latency 5`
    """
    from limbeck import api
    from limbeck.report import advice, plan_table

    places, settings = _parts(words)
    if places:
        raise InputError(f"'{places[0]}' is no setting; plan chooses recipes itself")
    for name in ("teacher", "data"):
        if not any(key == name or key.startswith(f"{name}.") for key in settings):
            raise InputError(f"give {name}=...: limbeck plan teacher=MODEL data=FILE")
    settings = {"teacher": None, "data": None} | settings
    found = api.plan(speedup=speedup, latency=latency, megabytes=megabytes, **settings)
    out.print(plan_table(found))
    out.print(advice(found), highlight=False, markup=False, soft_wrap=True)


@app.command()
def generate(words: Words = None) -> None:
    """Have a teacher answer prompts once, and keep the answers for any later run.

    Takes what `distill` takes, with `data.generation`; seqkd when no recipe is given.

    - `limbeck generate teacher=DIR data=prompts.jsonl data.generation.max_new_tokens=128 output=runs/a`

    - `limbeck generate teacher.server=http://localhost:8000/v1 teacher.model=NAME data=prompts.jsonl output=runs/a`
    """
    from limbeck import api

    places, settings = _parts(words)
    found = api.generate(*places, **settings)
    out.print(f"{len(found.table):,} answers in {found.folder}", highlight=False, soft_wrap=True)
    out.print(f"cost: {found.cost()}", highlight=False, soft_wrap=True)


@app.command()
def evaluate(words: Annotated[list[str], typer.Argument(metavar="MODEL KEY=VALUE...", show_default=False)]) -> None:
    """Measure a classifier on labelled examples, and against a teacher where one is given.

    - `limbeck evaluate runs/a/student data=test.csv`

    - `limbeck evaluate runs/a/student data=test.csv teacher=DIR output=metrics.json`
    """
    from limbeck import api
    from limbeck.files import write_json
    from limbeck.report import metrics_table

    places, settings = _parts(words, "model")
    output = settings.pop("output", None)
    parameters = [name for name in inspect.signature(api.evaluate).parameters if name not in ("model", "settings")]
    known = [*parameters, "metric", "resamples", "speed", "output"]
    for name in settings:
        if name not in known:
            raise InputError(f"unknown key '{name}'; {nearest(name, known)}")
    if not places or "data" not in settings:
        raise InputError("give a model and labelled examples: limbeck evaluate MODEL data=FILE")
    path = _writable(output)
    metrics = api.evaluate(places[0], **settings)
    out.print(metrics_table(metrics))
    if path is not None:
        write_json(path, metrics)


@app.command()
def benchmark(
    model: Annotated[str, typer.Argument(help="A folder, a run's folder, a hub name or a .gguf file.")],
    tasks: Annotated[str | None, typer.Option(help="Names with commas between; all that DATA has by default.")] = None,
    data: Annotated[Path | None, typer.Option(help="A folder of files; the hub's data sets by default.")] = None,
    limit: Annotated[int | None, typer.Option(help="Examples of each benchmark; all by default.")] = None,
    shots: Annotated[int, typer.Option(help="Examples with their answers in the prompt.")] = 0,
    output: Annotated[Path | None, typer.Option(help="A JSON file to write.")] = None,
) -> None:
    """Measure a causal language model on published benchmarks (LAMBADA, HellaSwag, ...; docs/benchmarks.md).

    - `limbeck benchmark runs/a --tasks lambada,hellaswag --data benchmarks --limit 500`
    """
    from limbeck import api
    from limbeck.evaluation.harness import LOWER_IS_BETTER
    from limbeck.files import write_json

    output = _writable(output)
    names = [name.strip() for name in tasks.split(",")] if tasks else None
    result = api.benchmark(model, names, data=data, limit=limit, shots=shots)
    rows = []
    for name, task in result["tasks"].items():
        for metric, found in task["metrics"].items():
            scale, unit = (1, "") if metric in LOWER_IS_BETTER else (100, " %")
            error = "" if found["stderr"] is None else f"{scale * found['stderr']:.2f}"
            value = f"{scale * found['value']:.2f}{unit}"
            rows.append((name, metric, value, error, f"{task['examples']:,} of {task['available']:,}", str(shots)))
    out.print(_table(("benchmark", "metric", "value", "standard error", "examples", "shots"), rows))
    if output:
        for task in result["tasks"].values():
            del task["scores"]  # a number for each example: for the library, not for reading
        write_json(output, result)


@app.command()
def export(
    words: Annotated[list[str], typer.Argument(metavar="MODEL OUTPUT KEY=VALUE...", show_default=False)],
) -> None:
    """Write a classifier's ONNX and int8 forms into a folder.

    - `limbeck export runs/a/student shipped formats=[int8]`
    """
    from limbeck import api

    places, settings = _recipe(words), _settings(words)
    if len(places) != 2:
        raise InputError("give a model and a folder: limbeck export MODEL OUTPUT")
    for name in settings:
        if name not in ("formats", "pair"):
            raise InputError(f"unknown key '{name}'; {nearest(name, ['formats', 'pair'])}")
    for path in api.export(places[0], places[1], **settings):
        out.print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)", highlight=False, soft_wrap=True)


@app.command()
def cut(
    words: Annotated[list[str], typer.Argument(metavar="MODEL OUTPUT KEY=VALUE...", show_default=False)],
) -> None:
    """Write a classifier with only some of its layers: a smaller model from one trained with layer_drop.

    `pattern` says which layers a number keeps: alternate (the default), first, last or spaced.

    - `limbeck cut runs/a/student shallow layers=3`

    - `limbeck cut runs/a/student shallow layers=[0,2,5]`
    """
    from limbeck import api

    places, settings = _recipe(words), _settings(words)
    if len(places) != 2 or "layers" not in settings:
        raise InputError("give a model, a folder and the layers to keep: limbeck cut MODEL OUTPUT layers=3")
    for name in settings:
        if name not in ("layers", "pattern"):
            raise InputError(f"unknown key '{name}'; {nearest(name, ['layers', 'pattern'])}")
    out.print(str(api.cut(places[0], places[1], **settings)), highlight=False, soft_wrap=True)


@app.command()
def rules(
    words: Annotated[list[str], typer.Argument(metavar="check RULES DATA KEY=VALUE...", show_default=False)],
) -> None:
    """Count how often a table of prompts and outputs, or of texts and labels, breaks a file's rules.

    `prompt=COLUMN output=COLUMN` name the columns of generated text; `text=`, `label=` and `task=` are as of evaluate.

    - `limbeck rules check rules.yaml generated.jsonl`

    - `limbeck rules check rules.yaml train.csv`
    """
    from limbeck import api

    places, settings = _recipe(words), _settings(words)
    if len(places) != 3 or places[0] != "check":
        raise InputError("give a rules file and a table: limbeck rules check RULES DATA")
    known = ["prompt", "output", "task", "text", "label"]
    for name in settings:
        if name not in known:
            raise InputError(f"unknown key '{name}'; {nearest(name, known)}")
    found = api.check_rules(places[1], places[2], **settings)
    rows = [
        (name, str(rule["weight"]), f"{rule['applies']:,}", f"{100 * rule['broken']:.2f} %")
        for name, rule in found["by_rule"].items()
    ]
    rows += [
        (f"any {kind} rule", "", "", f"{100 * found[kind]:.2f} %")
        for kind in ("hard", "soft")
        if found[kind] is not None
    ]
    out.print(_table(("rule", "weight", "examples it is about", "broken, of all"), rows))


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Print a run's table again, and write its report and model card anew from metrics.json."""
    from limbeck.files import read_json
    from limbeck.folder import RunFolder
    from limbeck.progress import say
    from limbeck.report import metrics_table, write_card, write_report

    run = RunFolder(folder)
    if not run.metrics.is_file():
        raise InputError(f"{folder} holds no metrics.json; give the folder of a finished run")
    if not run.recipe.is_file():
        raise InputError(f"{folder} holds no recipe.yaml, which the report tells of; give the whole folder of a run")
    metrics, text = read_json(run.metrics), run.recipe.read_text("utf-8")
    model = next((part for part in (folder / "student", folder / "model") if part.is_dir()), None)
    if model is None:
        say(f"report: no model card, as {folder} holds neither student nor model")
    else:
        write_card(metrics, text, model)
    write_report(metrics, text, run.report)
    out.print(metrics_table(metrics))
    out.print(f"report: {run.report}", highlight=False, soft_wrap=True)


@app.command()
def methods(
    action: Annotated[str, typer.Argument(help="`list`, `show`, or `layers`.")] = "list",
    name: Annotated[str | None, typer.Argument(help="The method to show.")] = None,
) -> None:
    """List the packaged methods, show one's recipe, or print which layers each pattern keeps."""
    known = recipe.packaged()
    if action == "show":
        if name not in known:
            raise InputError(f"no method '{name}'; {nearest(str(name), list(known))}")
        out.print(yaml.safe_dump(known[name], sort_keys=False, allow_unicode=True), highlight=False, markup=False)
    elif action == "layers":
        from limbeck.students import layers_table

        rows = [(str(deep), str(kept), name, " ".join(map(str, layers))) for deep, kept, name, layers in layers_table()]
        out.print(_table(("teacher's layers", "student's", "pattern", "layers kept"), rows))
    elif action == "list":
        asked = {"paper": "paper", "needs": "needs", "the student may differ in": "student"}
        for each, content in known.items():
            out.print(f"[bold]{each}[/]  {escape(content['about']['title'])}")
            for title, key in asked.items():
                out.print(Padding(f"{title}: {escape(content['about'][key])}", (0, 0, 0, 4)))
            out.print()
    else:
        raise InputError(f"unknown action '{action}'; {nearest(action, ['list', 'show', 'layers'])}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors.

    Save it and start a recipe with `# yaml-language-server: $schema=recipe.schema.json` to get completion.
    """
    sys.stdout.write(json.dumps(recipe.json_schema(), indent=2) + "\n")


@app.command()
def doctor() -> None:
    """Say what this machine can do and which extras are installed."""
    from limbeck.doctor import findings

    out.print(_table(("what", "found", "so"), findings()))


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        out.print(__version__, highlight=False)
        raise typer.Exit


def _recipe(words: list[str] | None) -> list[str]:
    """The words that are no settings."""
    return [word for word in words or [] if "=" not in word]


def _settings(words: list[str] | None) -> dict[str, Any]:
    return recipe.parse_overrides(word for word in words or [] if "=" in word)


def _parts(words: list[str] | None, first: str = "recipe") -> tuple[list[str], dict[str, Any]]:
    """The one word that is no setting, where it is given, and the settings.

    Args:
        words: the command line.
        first: what that word is.

    Raises:
        InputError: several such words, or one beside a setting that says the same.
    """
    places, settings = _recipe(words), _settings(words)
    if len(places) > 1:
        raise InputError(f"'{places[0]}' and '{places[1]}' are given where one {first} goes; settings are KEY=VALUE")
    if places and first in settings:
        raise InputError(f"'{places[0]}' and {first}={settings[first]} are given, but one {first} goes; drop one")
    return places, settings


def _writable(output: Any) -> Path | None:  # noqa: ANN401
    """Where a file is to be written, if anywhere; refused before anything is measured where it cannot be."""
    if output is None:
        return None
    path = Path(str(output))
    if not path.absolute().parent.is_dir():
        raise InputError(f"no folder '{path.absolute().parent}' to write {path.name} into")
    if path.is_dir():
        raise InputError(f"'{path}' is a folder; give a file to write")
    return path


def _show(run: Any) -> None:  # noqa: ANN401
    if not run.metrics:
        return  # another process of the same run prints
    from limbeck.report import metrics_table

    out.print(metrics_table(run.metrics))
    out.print(f"report: {run.report}", highlight=False, soft_wrap=True)


def _table(header: tuple[str, ...], rows: Any) -> Table:  # noqa: ANN401
    table = Table(*(Column(title, overflow="fold") for title in header))  # addresses stay whole
    for row in rows:
        table.add_row(*row)
    return table


def main(command: Callable[..., Any] = app) -> None:
    """Run the command line; a mistake is a sentence and an exit code, not a stack trace."""
    try:
        command()
    except LimbeckError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; the same command goes on from here", style="yellow")
        sys.exit(1)


if __name__ == "__main__":
    main()
