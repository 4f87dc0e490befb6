"""The student's model card, in the form that the Hugging Face Hub reads."""

from __future__ import annotations

import json
import re
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from limbeck.files import write_atomic
from limbeck.recipe import Recipe, load
from limbeck.report import sentences
from limbeck.report.html import environment
from limbeck.report.numbers import known, title
from limbeck.report.table import Metrics, get, headline, models, name_of, tested

# The names that the Hub knows our metrics by, with what tells two of one name apart.
_HUB_METRICS: dict[str, dict[str, Any]] = {
    "accuracy": {"type": "accuracy"},
    "f1_macro": {"type": "f1", "args": {"average": "macro"}},
    "f1_micro": {"type": "f1", "args": {"average": "micro"}},
    "exact_match": {"type": "exact_match"},
    "mcc": {"type": "matthews_correlation"},
    "spearman": {"type": "spearmanr"},
    "pearson": {"type": "pearsonr"},
    "r2": {"type": "r_squared"},
    "mae": {"type": "mae"},
}


def write_card(metrics: Metrics, recipe_yaml: str, folder: Path) -> Path:
    """Write the model card into the student's folder.

    Args:
        metrics: the run's metrics, as in `metrics.json`.
        recipe_yaml: the resolved recipe. The card shows it without the folders above absolute paths.
        folder: the student's folder.

    Returns:
        The card, `README.md`.
    """
    raw = yaml.safe_load(recipe_yaml)
    recipe = load(raw)
    shown = yaml.safe_dump(_published(raw), sort_keys=False, allow_unicode=True).rstrip()
    # A run keeps its student (or model) in a folder of that name; the run's own name says more.
    name = folder.resolve().parent.name if folder.name in ("student", "model") else folder.name
    header = yaml.safe_dump(_front_matter(metrics, recipe, name), sort_keys=False, allow_unicode=True)
    template = environment().get_template("card.md.j2")
    card = template.render(
        front_matter=header,
        name=name,
        metrics=metrics,
        method=_method(metrics, recipe),
        teachers=[sentences.short(teacher.model) for teacher in recipe.teacher.models] if recipe.teacher else [],
        text_teacher=sentences.text_teacher(recipe),
        augmentation=sentences.augmentation(recipe),
        plain=_opens_in_plain_transformers(folder),
        tested=tested(metrics),
        taught=sentences.taught_by_data(metrics),
        inputs=metrics["task"].get("inputs", "text"),
        many=sentences.examples_of(metrics).removeprefix("single "),
        verdict=sentences.verdict(metrics),
        initialisation=sentences.initialisation(metrics),
        stages=sentences.stages(recipe, metrics),
        data=sentences.data(metrics),
        notices=metrics["data"].get("notices") or [],
        table=_markdown(metrics),
        metric_note=sentences.metric_note(metrics),
        speed_terms=sentences.speed_terms(metrics),
        fidelity=sentences.fidelity(metrics),
        calibration=sentences.calibration(metrics),
        rules=sentences.rules(metrics),
        comparisons=[told for other in ("teacher", "baseline") if (told := sentences.comparison(metrics, other))],
        machine=sentences.machine(metrics),
        max_length=recipe.task.max_length,
        recipe=shown,
        fence=_fence(shown),
    )
    write_atomic(folder / "README.md", card)
    return folder / "README.md"


def _front_matter(metrics: Metrics, recipe: Recipe, name: str) -> dict[str, Any]:
    """What the Hub reads: how to load the model, what it came from, and its test scores."""
    source = recipe.data.train
    path, subset = source.path, source.subset
    public = sentences.on_hub(path)
    data_name = path if public else Path(sentences.short(path)).stem
    dataset: dict[str, Any] = {"name": data_name, "type": path if public else re.sub(r"[^\w.-]", "-", data_name)}
    if public and subset:
        dataset |= {"config": subset}
    dataset["split"] = "test"
    scores = []
    for metric, measured in (get(metrics, "student", "quality") or {}).items():
        value = known(measured.get("value"))
        if value is not None:
            kind = _HUB_METRICS.get(metric, {"type": metric})
            scores.append({"name": title(metric), "value": round(value, 6), **kind})
    task = {"type": "text-classification", "name": "Text Classification"}
    if metrics["task"].get("inputs") == "image":
        task = {"type": "image-classification", "name": "Image Classification"}
    if metrics["task"].get("inputs") == "features":
        task = {"type": "tabular-classification", "name": "Tabular Classification"}
    if recipe.task.kind == "masked-lm":
        task = {"type": "fill-mask", "name": "Masked Language Modeling"}
    if recipe.task.kind == "causal-lm":
        task = {"type": "text-generation", "name": "Text Generation"}
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": task["type"],
        "tags": ["limbeck", "knowledge-distillation"] if recipe.teacher else ["limbeck"],
    }
    bases = [teacher.model for teacher in recipe.teacher.models] if recipe.teacher else []
    bases = [recipe.student.model] if recipe.student.model else bases
    if bases and all(sentences.on_hub(base) for base in bases):
        header["base_model"] = bases[0] if len(bases) == 1 else bases
    sources = [each.path for each in (source, recipe.data.corpus) if each and sentences.on_hub(each.path)]
    if sources:
        header["datasets"] = sources
    header["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": scores}]}]
    return header


def _opens_in_plain_transformers(folder: Path) -> bool:
    """Whether transformers alone knows the architecture of the model in a folder."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return "auto_map" in config or config.get("model_type", "bert") in CONFIG_MAPPING_NAMES


def _published(value: Any) -> Any:  # noqa: ANN401
    """A recipe with the machine's folders left out of its absolute paths."""
    if isinstance(value, dict):
        return {key: _published(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_published(inner) for inner in value]
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute() or PureWindowsPath(value).drive):
        return sentences.short(value)
    return value


def _method(metrics: Metrics, recipe: Recipe) -> str:
    """The method's name, what it is, and its paper."""
    name = metrics.get("method") or ""
    if recipe.about is None:
        return name
    told = f"{recipe.about.title} ({recipe.about.paper})"
    return told if name in ("", recipe.about.title) else f"{name}: {told}"


def _markdown(metrics: Metrics) -> str:
    """The headline table as Markdown, intervals in brackets."""
    columns = headline(metrics)
    lines = ["| Model | " + " | ".join(column.title for column in columns) + " |", "|---|" + "---:|" * len(columns)]
    for row, model in enumerate(models(metrics)):
        cells = [column.cells[row] for column in columns]
        texts = [f"{cell.text} ({cell.interval})" if cell.interval else cell.text or "-" for cell in cells]
        lines.append(f"| {name_of(metrics, model)} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _fence(text: str) -> str:
    """A code fence that the text cannot close."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
