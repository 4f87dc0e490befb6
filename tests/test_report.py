"""The report: the terminal table, the model card and the HTML page, from one realistic set of metrics."""

import copy
import html.parser
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from limbeck.recipe import load
from limbeck.recipe.schema import Recipe
from limbeck.report import metrics_table, write_card, write_report
from limbeck.report.numbers import bounds, count, difference, duration, p_value, score, significant, times
from limbeck.report.sections import tiles
from limbeck.report.sentences import (
    augmentation,
    comparison,
    data,
    fidelity,
    initialisation,
    speed_terms,
    stages,
    text_teacher,
    verdict,
)
from limbeck.report.table import headline

RECIPE = """\
about:
  title: Soft targets at a temperature
  paper: Hinton, Vinyals and Dean 2015
task: {kind: classification, labels: [negative, positive]}
data: {train: {path: reviews.csv}, test: 0.1}
teacher: {models: [{model: somewhere/else/big-teacher}]}
student: {layers: 6}
stages:
- name: distill
  objectives: {soft_targets: {weight: 0.9, temperature: 2.0, form: kl}, hard_labels: {weight: 0.1}}
output: runs/reviews
"""
SYSTEM = """\
data: {train: reviews.csv, corpus: wiki.txt, augmentation: {model: some/where/lm, copies: 2, probability: 0.5}}
teacher: {models: [big-teacher], general: {model: some/where/general}}
student: {shape: {model_type: mobilebert, hidden_size: 64}, embeddings: true}
stages:
- name: transfer
  task: {kind: masked-lm, packed: true}
  progressive: true
  objectives: {feature_map: 1, attention: {form: kl}}
  training: {dropout: false}
- name: words
  task: {kind: masked-lm, whole_words: true}
  objectives: {masked_lm: 0.5, soft_targets: {weight: 0.5, temperature: 1, positions: masked}}
  training: {epochs: 1, layer_drop: 0.25}
- name: follow
  objectives: {relations: {of: [queries, keys], heads: 8}, hidden: {form: cosine, layers: {1: 3, -1: -1}}}
- name: fine-tune
  keep: half
  objectives: {hard_labels: 1, soft_targets: 1}
output: runs/reviews
"""
"""A recipe with stages on plain text, one of them layer by layer, and on the task."""
WORDS = """\
task: {kind: masked-lm, max_length: 64}
data: wiki.txt
teacher: language
stages:
- name: distill
  objectives: {masked_lm: 2, soft_targets: 5}
output: runs/words
"""
WRITER = """\
task: {kind: causal-lm, max_length: 64}
data: wiki.txt
teacher: language
stages:
- name: distill
  objectives: {next_token: 1, soft_targets: 5}
output: runs/writer
"""
EVIL = "<script>alert('x')</script> & \"quoted\" ``` | $5 or $6"


def model(accuracy: float, retention: float, agreement: float, size: int, latency: float, ece: float) -> dict:
    def ends(value: float) -> dict:
        return {"value": value, "low": value - 0.012, "high": value + 0.011}

    curve = [
        {"confidence": 0.55 + 0.1 * i, "accuracy": min(1, 0.55 + 0.1 * i + (i - 2) * ece), "count": 50 + 150 * i}
        for i in range(5)
    ]
    return {
        "quality": {"accuracy": ends(accuracy), "f1_macro": ends(accuracy - 0.004), "mcc": ends(2 * accuracy - 1)},
        "retention": retention,
        "retention_interval": [retention - 0.009, retention + 0.008],
        "fidelity": {
            "agreement": agreement,
            "agreement_interval": [agreement - 0.01, agreement + 0.01],
            "kl": 0.4 * (1 - agreement),
        },
        "calibration": {"ece": ece, "curve": curve},
        "slices": {
            "class": {
                "negative": {"value": accuracy - 0.01, "count": 912},
                "positive": {"value": accuracy + 0.01, "count": 988},
            },
            "length": {
                "3-12 tokens": {"value": accuracy + 0.02, "count": 640},
                "13-40 tokens": {"value": accuracy, "count": 1240},
                "41-128 tokens": {"value": accuracy - 0.08, "count": 20},
            },
        },
        "size": {"parameters": size // 4, "bytes": size},
        "speed": {
            "latency_ms_p50": latency,
            "latency_ms_p95": 1.3 * latency,
            "throughput": 2600 / latency,
            "batch_size": 32,
            "threads": 4,
            "precision": "float32",
        },
    }


def history(terms: tuple[str, ...], epochs: int, top: float | None) -> list[dict]:
    logs: list[dict] = []
    for step in range(1, epochs * 10 + 1):
        epoch, value = step / 10, 0.2 + 1.1 * math.exp(-step / 8)
        parts = {term: value * (1 + i) for i, term in enumerate(terms)}
        logs.append({"loss": value, "grad_norm": 1.0, "learning_rate": 5e-5, **parts, "epoch": epoch, "step": step})
        if step % 10 == 0 and top is not None:
            reached = top - 0.08 * math.exp(-epoch)
            logs.append({"eval_accuracy": reached, "eval_runtime": 1.0, "epoch": epoch, "step": step})
    return [
        *logs,
        {"train_runtime": 61.0, "train_loss": 0.4, "total_flos": 1e12, "epoch": float(epochs), "step": 10 * epochs},
    ]


def full() -> dict:
    exports = {"max_logit_difference": 1.2e-5}, {"max_logit_difference": 0.31}
    disagreements = [
        {
            "text": f"A film that {'goes on and ' * (12 * i)}on, and somehow I liked it.",
            "label": "positive",
            "teacher": "positive" if i % 2 else "negative",
            "student": "negative" if i % 2 else "positive",
            "teacher_confidence": 0.97 - 0.05 * i,
            "student_confidence": 0.88 - 0.03 * i,
        }
        for i in range(5)
    ]
    return {
        "version": 1,
        "method": "hinton",
        "task": {"kind": "classification", "labels": ["negative", "positive"], "metric": "accuracy", "pair": False},
        "data": {
            "train": 15200,
            "transfer": 30400,
            "validation": 1900,
            "test": 1900,
            "notices": ["3 test examples also stand in the training data and were left out of it."],
        },
        "machine": {
            "device": "cpu",
            "gpu": None,
            "cpu": "An Honest CPU at 2.1 GHz",
            "cores": 8,
            "threads": 4,
            "precision": "bfloat16",
            "system": "Linux x86_64",
            "python": "3.11.2",
            "torch": "2.13.0",
        },
        "teacher": model(0.9245, 1.0, 1.0, 438_000_000, 20.4, 0.041),
        "student": model(0.9162, 0.991, 0.953, 268_000_000, 10.7, 0.022),
        "baseline": model(0.9011, 0.9747, 0.921, 268_000_000, 10.7, 0.055),
        "student_onnx": model(0.9162, 0.991, 0.953, 268_100_000, 6.2, 0.022) | exports[0],
        "student_int8": model(0.9120, 0.9865, 0.944, 67_600_000, 2.9, 0.027) | exports[1],
        "comparisons": {
            "student_vs_teacher": {
                "metric": "accuracy",
                "difference": {"value": -0.0083, "low": -0.0151, "high": -0.0012},
                "p_value": 0.021,
            },
            "student_vs_baseline": {
                "metric": "accuracy",
                "difference": {"value": 0.0151, "low": 0.0042, "high": 0.0263},
                "p_value": 0.0004,
            },
        },
        "training": {
            "student": {
                "history": {"distill": history(("soft_targets", "hard_labels"), 4, 0.921)},
                "seconds": {"distill": 1834.2},
                "initialisation": {"from": "teacher", "layers": [0, 2, 4, 7, 9, 11]},
            },
            "baseline": {
                "history": {"hard_labels": history(("hard_labels",), 4, 0.903)},
                "seconds": {"hard_labels": 1711.0},
                "initialisation": {"from": "teacher", "layers": [0, 2, 4, 7, 9, 11]},
            },
        },
        "knowledge": {"examples": 30400, "bytes": 243_200},
        "disagreements": disagreements,
    }


def bare() -> dict:
    """No baseline, no exports, no speed, nothing optional."""
    metrics = full()
    for name in ("baseline", "student_onnx", "student_int8", "knowledge"):
        del metrics[name]
    del metrics["training"]["baseline"], metrics["comparisons"]["student_vs_baseline"]
    metrics["teacher"]["speed"] = metrics["student"]["speed"] = None
    metrics |= {"method": None, "disagreements": []}
    metrics["data"]["notices"] = []
    return metrics


def regression() -> dict:
    metrics = full()
    metrics["task"] = {"kind": "regression", "labels": ["score"], "metric": "spearman", "pair": True}
    for name in ("teacher", "student", "baseline", "student_onnx", "student_int8"):
        ends = metrics[name]["quality"]["accuracy"]
        metrics[name]["quality"] = {"spearman": ends, "mae": {"value": 0.31, "low": 0.29, "high": 0.33}}
        metrics[name]["fidelity"]["kl"] = None
        metrics[name]["calibration"] = {"ece": None, "curve": []}
        metrics[name]["slices"]["class"] = {}
    for test in metrics["comparisons"].values():
        test["metric"] = "spearman"
    for logs in (stage for run in metrics["training"].values() for stage in run["history"].values()):
        for log in logs:
            if "eval_accuracy" in log:
                log["eval_spearman"] = log.pop("eval_accuracy")
    metrics["disagreements"] = [
        {"text": "a", "text_pair": "b", "label": 3.25, "teacher": 3.1, "student": 1.2345}
        | {"teacher_confidence": None, "student_confidence": None}
    ]
    return metrics


def alone() -> dict:
    """A model trained without any teacher."""
    metrics = bare()
    del metrics["teacher"], metrics["comparisons"]
    metrics["student"] |= {"retention": None, "retention_interval": None, "fidelity": None}
    return metrics


def multi_label() -> dict:
    metrics = bare()
    names = [f"topic {i}" for i in range(60)]
    metrics["task"] = {"kind": "multi-label", "labels": names, "metric": "f1_micro", "pair": False}
    for name, worse in (("teacher", 0), ("student", 0.005)):
        metrics[name]["quality"] = {"f1_micro": {"value": 0.8, "low": 0.79, "high": 0.81}}
        metrics[name]["slices"]["class"] = {n: {"value": 0.9 - worse * i, "count": 99} for i, n in enumerate(names)}
    metrics["disagreements"] = [
        {"text": "t", "label": ["topic 1", "topic 2"], "teacher": ["topic 1"], "student": []}
        | {"teacher_confidence": 0.9, "student_confidence": 0.6}
    ]
    return metrics


def system() -> dict:
    """A run of `SYSTEM`, its first stage a phase for every layer."""
    metrics = full()
    layers = {f"transfer-{n}": history(("attention", "feature_map"), 1, None) for n in (1, 2, 3)}
    follow = history(("hidden", "relations"), 2, None)
    phases = layers | {"words": history(("soft_targets", "masked_lm"), 1, 0.4), "follow": follow}
    phases |= {"fine-tune": history(("hard_labels", "soft_targets"), 3, 0.92)}
    alone = {"transfer": history(("masked_lm",), 3, 0.3), "words": history(("masked_lm",), 1, 0.35)}
    alone |= {"follow": history(("hard_labels",), 2, 0.8), "fine-tune": history(("hard_labels",), 3, 0.9)}
    origin = {"from": "random weights", "shape": {"model_type": "mobilebert", "hidden_size": 64}, "embeddings": ["w"]}
    for model, logs in (("student", phases), ("baseline", alone)):
        seconds = dict.fromkeys(logs, 61.0)
        metrics["training"][model] = {"history": logs, "seconds": seconds, "initialisation": origin}
    return metrics


def words() -> dict:
    """A run of `WORDS`: a language model's."""
    metrics = bare()
    metrics["task"] = {"kind": "masked-lm", "labels": [], "metric": "accuracy", "pair": False}
    metrics["training"]["student"]["history"] = {"distill": history(("soft_targets", "masked_lm"), 2, 0.5)}
    for name in ("teacher", "student"):
        metrics[name]["quality"] = {"accuracy": metrics[name]["quality"]["accuracy"]}
        metrics[name]["slices"]["class"] = {}
    metrics["disagreements"] = [
        {"text": "a [MASK] soup", "label": "good", "teacher": "good", "student": "bad"}
        | {"teacher_confidence": 0.9, "student_confidence": 0.4}
    ]
    return metrics


def writer() -> dict:
    """A run of a causal language model that was measured on some of its test lines."""
    metrics = full()
    metrics["task"] = {"kind": "causal-lm", "labels": [], "metric": "accuracy", "pair": False, "inputs": "text"}
    metrics["data"] |= {"test": 9000, "measured": 500}
    for model in ("student", "baseline"):
        metrics["training"][model]["history"] = {"distill": history(("next_token",), 2, 0.4)}
    for name in ("teacher", "student", "baseline"):
        metrics[name]["quality"] = {"accuracy": metrics[name]["quality"]["accuracy"]}
        metrics[name]["slices"] = {"class": {}, "length": {}}
    return metrics


CASES = {
    "full": full,
    "bare": bare,
    "regression": regression,
    "alone": alone,
    "multi-label": multi_label,
    "system": system,
    "words": words,
    "writer": writer,
}
RECIPES = {"system": SYSTEM, "words": WORDS, "writer": WRITER}


def printed(metrics: dict) -> str:
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(metrics_table(metrics))
    return console.export_text()


class Page(html.parser.HTMLParser):
    """The tags, attributes and text of a page; fails on a tag that is not closed."""

    VOID = ("meta", "br", "use", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, (tag, self.getpos())


def recipe_of(text: str, **changes: object) -> Recipe:
    return load(yaml.safe_load(text), changes)


def started(origin: dict) -> str | None:
    return initialisation({"training": {"student": {"initialisation": origin}}})


def plots(text: str) -> dict[str, str]:
    """The page's figures with a heading: what each plot shows, in words."""
    found = re.findall(r"<figure>\s*<h3>(.*?)</h3>\s*<svg[^>]*aria-label=\"([^\"]*)", text)
    assert len(dict(found)) == len(found)
    return dict(found)


def report(metrics: dict, folder: Path, recipe: str = RECIPE) -> str:
    return write_report(metrics, recipe, folder / "report.html").read_text("utf-8")


def test_table_has_models_in_order_with_their_numbers():
    text = printed(full())
    places = [text.index(name) for name in ("Teacher", "Student ", "Baseline", "ONNX", "int8")]
    assert places == sorted(places)
    for value in ("92.5 %", "91.2-93.5", "99.1 %", "95.3 %", "67.0 M", "438 MB", "20.4", "1.9x", "7.0x", "0.022"):
        assert value in text
    assert "On 1,900 test examples" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80  # fits a narrow terminal


def test_table_of_an_evaluation_outside_a_run():
    metrics = full()
    for name in ("task", "data", "training", "machine"):
        del metrics[name]
    assert "92.5 %" in printed(metrics)


def test_table_leaves_out_what_was_not_measured():
    titles = [column.title for column in headline(bare())]
    assert titles == ["Accuracy", "Retention", "Agreement", "KL", "ECE", "Parameters", "Size (MB)"]
    assert [column.title for column in headline(alone())] == ["Accuracy", "ECE", "Parameters", "Size (MB)"]
    regressed = [column.title for column in headline(regression())]
    assert regressed[0] == "Spearman correlation"
    assert not {"KL", "ECE"} & set(regressed)


def test_not_a_number_is_not_shown():
    metrics = full()
    metrics["student"]["retention"] = math.nan
    metrics["baseline"]["retention"] = math.inf
    assert "nan" not in printed(metrics)
    assert verdict(metrics).startswith("The student's accuracy is 91.6 % on 1,900 test examples")


def test_verdict():
    assert verdict(full()) == (
        "The student keeps 99.1 % of the teacher's accuracy at 61 % of its size and 1.9x its speed; "
        "trained on the labels alone, the same student reaches 97.5 %."
    )
    assert verdict(bare()) == "The student keeps 99.1 % of the teacher's accuracy at 61 % of its size."
    assert verdict(alone()) == "The model's accuracy is 91.6 % on 1,900 test examples."


def test_sizes_of_numbers_of_other_widths_are_told_in_parameters():
    metrics = bare()
    whole = metrics["teacher"]["size"]
    metrics["teacher"]["size"] = {"parameters": whole["parameters"], "bytes": whole["bytes"] // 6}  # a GGUF file's
    assert verdict(metrics) == "The student keeps 99.1 % of the teacher's accuracy at 61 % of its parameters."
    assert tiles(metrics)[1][:2] == ("61 %", "of the teacher's parameters")


def test_speeds_are_told_with_their_terms():
    metrics = full()
    metrics["student_int8"]["speed"]["precision"] = "int8"
    assert speed_terms(metrics) == (
        "Latency is the median for one example at a time; throughput at batch size 32; 4 threads; "
        "float32 (Student, int8: int8); speed-up is the teacher's latency over the model's."
    )
    assert speed_terms(bare()) is None


def generating() -> dict:
    """A run of a causal language model."""
    metrics = bare()
    for name, rate in (("teacher", 20.0), ("student", 38.5)):
        spread = {"median": rate, "low": 0.9 * rate, "high": 1.1 * rate}
        metrics[name]["speed"] = {
            "new_tokens_per_second": spread,
            "prompt_tokens_per_second": {end: 15 * value for end, value in spread.items()},
            "peak_bytes": {"median": 12e6, "low": 11e6, "high": 13e6},
            "prompt_tokens": 64,
            "new_tokens": 16,
            "batch_size": 1,
            "threads": 2,
            "precision": "float32",
        }
    return metrics


def test_generation_is_told_in_tokens_per_second():
    metrics = generating()
    assert "at 61 % of its size and 1.9x its speed" in verdict(metrics)
    assert speed_terms(metrics) == (
        "Tokens per second are medians of 16 tokens generated after a prompt of 64, one text at a time; memory is the "
        "most above the weights; 2 threads; float32; speed-up is the model's new tokens per second over the teacher's."
    )
    shown = {column.title: [cell.text for cell in column.cells] for column in headline(metrics)}
    assert shown["New tokens/s"] == ["20.0", "38.5"]
    assert shown["Prompt tokens/s"] == ["300", "578"]
    assert shown["Memory (MB)"] == ["12.0", "12.0"]
    assert "Latency (ms)" not in shown
    for name in ("teacher", "student"):
        metrics[name]["quality"]["perplexity"] = {"value": 31.2, "low": 30.1, "high": 32.2}
    told = printed(metrics)
    assert all(word in told for word in ("Tokens/s", "38.5", "1.9x", "Perplexity", "31.20", "KL 0.019"))
    assert max(len(line.rstrip()) for line in told.splitlines()) <= 80
    metrics["teacher"]["speed"]["peak_bytes"] = metrics["student"]["speed"]["peak_bytes"] = None
    assert "Memory (MB)" not in {column.title for column in headline(metrics)}


def test_comparison_says_what_the_test_set_cannot_tell():
    metrics = full()
    below = comparison(metrics, "teacher")
    assert below == (
        "On the same examples the student's accuracy is 0.8 points below the teacher's "
        "(95 % interval of the difference \u22121.5 to \u22120.1 points, p = 0.021)."
    )
    assert "1.5 points above the baseline's" in comparison(metrics, "baseline")
    assert "p < 0.001" in comparison(metrics, "baseline")
    metrics["comparisons"]["student_vs_teacher"] |= {"difference": {"value": 0, "low": -0.01, "high": 0.01}}
    assert "equals the teacher's" in comparison(metrics, "teacher")
    assert comparison(metrics, "teacher").endswith("does not tell the two apart.")
    assert comparison(bare(), "baseline") is None


@pytest.mark.parametrize("case", CASES)
def test_card_has_front_matter_that_the_hub_reads(case, tmp_path):
    huggingface = pytest.importorskip("huggingface_hub")
    metrics = CASES[case]()
    folder = tmp_path / "reviews" / "student"
    folder.mkdir(parents=True)
    path = write_card(metrics, RECIPES.get(case, RECIPE), folder)
    assert path == folder / "README.md"
    card = huggingface.ModelCard(path.read_text("utf-8"), ignore_metadata_errors=False)
    assert card.data.library_name == "transformers"
    kind = {"words": "fill-mask", "writer": "text-generation"}.get(case, "text-classification")
    assert card.data.pipeline_tag == kind
    assert {result.task_type for result in card.data.eval_results} == {kind}
    assert card.data.tags == ["limbeck", "knowledge-distillation"]
    assert card.data.model_name == "reviews"
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    quality = metrics["student"]["quality"]
    assert list(results.values()) == [round(measured["value"], 6) for measured in quality.values()]
    source = "wiki" if case in ("words", "writer") else "reviews"
    assert {result.dataset_type for result in card.data.eval_results} == {source}
    assert "\n\n\n" not in card.text
    assert not re.search("(?<!=)None", card.text)


def test_card_tells_the_whole_story(tmp_path):
    path = write_card(full(), RECIPE, tmp_path)
    card = path.read_text("utf-8")
    for part in (
        "keeps 99.1 % of the teacher's accuracy",
        "- Teacher: `big-teacher`",
        "- Method: hinton: Soft targets at a temperature (Hinton, Vinyals and Dean 2015)",
        "layers 0, 2, 4, 7, 9, 11",
        "0.1 x hard labels + 0.9 x soft targets (temperature 2, form kl)",
        "15,200 train, 30,400 transfer",
        "3 test examples also stand",
        "| Student | 91.6 % (90.4 to 92.7) | 99.1 % (98.2 to 99.9) |",
        "0.8 points below the teacher's",
        "1.5 points above the baseline's",
        'pipeline("text-classification", model=',
        "An Honest CPU at 2.1 GHz",
        "- name: distill",
        "## Limits",
    ):
        assert part in card
    header = yaml.safe_load(card.split("---\n")[1])
    assert "base_model" not in header
    assert "datasets" not in header


def test_card_keeps_the_machine_s_folders_to_itself(tmp_path):
    recipe = RECIPE.replace("somewhere/else", "/home/somebody/models").replace("reviews.csv", "C:\\data\\reviews.csv")
    recipe = recipe.replace("runs/reviews", "~/runs/reviews")
    metrics = full()
    metrics["training"]["student"]["initialisation"] = {"from": "checkpoint", "model": "/home/somebody/start"}
    card = write_card(metrics, recipe, tmp_path).read_text("utf-8")
    for folder in ("/home", "somebody", "C:", "~"):
        assert folder not in card
    assert "Started from: the checkpoint start" in card
    assert "path: reviews.csv" in card


def test_card_names_what_is_on_the_hub(tmp_path):
    recipe = RECIPE.replace("reviews.csv", "nyu-mll/glue, subset: sst2").replace("somewhere/else/big-", "google/big-")
    header = yaml.safe_load(write_card(full(), recipe, tmp_path).read_text("utf-8").split("---\n")[1])
    assert header["base_model"] == "google/big-teacher"
    assert header["datasets"] == ["nyu-mll/glue"]
    dataset = header["model-index"][0]["results"][0]["dataset"]
    assert dataset == {"name": "nyu-mll/glue", "type": "nyu-mll/glue", "config": "sst2", "split": "test"}


@pytest.mark.parametrize("case", CASES)
def test_page_is_well_formed_and_needs_nothing_from_elsewhere(case, tmp_path):
    text = report(CASES[case](), tmp_path, RECIPES.get(case, RECIPE))
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "base"), tag
        assert "src" not in attributes, tag
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    # Addresses occur as the names of XML namespaces only; the stylesheet asks for nothing.
    assert not re.search("https?:", re.sub(r'xmlns(:\w+)?="http://www\.w3\.org/[^"]+"', "", text))
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    for found in ("nan", "None", "{{", "{%"):
        assert not re.search(rf"(?<![a-z]){re.escape(found)}(?![a-z])", text), found
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(drawing["role"] == "img" and len(drawing["aria-label"]) > 30 for drawing in drawings)
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def sections(text: str) -> set[str]:
    return {attributes["id"] for tag, attributes in Page(text).tags if tag == "h2"}


def test_page_has_every_section(tmp_path):
    text = report(full(), tmp_path)
    expected = {"headline", "notices", "tradeoffs", "tests", "metrics", "training", "calibration", "slices"}
    assert sections(text) == expected | {"disagreements", "made"}
    assert text.count("<svg") == 6
    for part in ("The resolved recipe", "An Honest CPU", "41-128 tokens", "20 *", "30 min 34 s", "97 % sure", "0.310"):
        assert part in text
    assert "var(--student-int8)" in text  # the plots take the page's colours, and so its dark mode


def test_page_leaves_out_what_a_run_has_not(tmp_path):
    text = report(bare(), tmp_path)
    assert not sections(text) & {"notices", "disagreements"}
    assert "Loss of the baseline" not in text
    assert "Quality and size" in text
    assert "Quality and latency" not in text
    assert "calibration" not in sections(report(regression(), tmp_path))
    assert not sections(report(alone(), tmp_path)) & {"tests", "disagreements", "tradeoffs"}


def test_page_escapes_what_users_wrote(tmp_path):
    metrics = full()
    metrics["disagreements"][0] |= {"text": EVIL, "label": EVIL, "teacher": EVIL, "student": EVIL}
    metrics["data"]["notices"] = [EVIL]
    metrics["task"]["labels"] = [EVIL, "positive"]
    for name in ("teacher", "student"):
        metrics[name]["slices"]["class"][EVIL] = {"value": 0.5, "count": 7}
    recipe = RECIPE.replace("reviews.csv", "'<script>.csv'")
    text = report(metrics, tmp_path, recipe)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 6
    Page(text)
    card = write_card(metrics, recipe.replace("title: Soft", "title: '```' # "), tmp_path).read_text("utf-8")
    assert card.rstrip().endswith("\n````\n\n</details>")


def test_page_shows_the_worst_of_many_classes(tmp_path):
    text = report(multi_label(), tmp_path)
    assert "The 20 of 60 classes" in text
    rows = re.findall(r'class="slice">(topic \d+)<', text)
    assert rows == [f"topic {i}" for i in range(59, 39, -1)]
    assert "topic 1, topic 2" in text
    assert ">none" in text


def test_page_tells_stages_apart_and_survives_strange_logs(tmp_path):
    metrics = full()
    logs = metrics["training"]["student"]["history"]
    logs["second"] = history(("soft_targets",), 2, 0.93)
    logs["second"][0] |= {"loss": math.nan, "grad_norm": math.inf}
    logs["empty"] = []
    text = report(metrics, tmp_path)
    assert ">second</text>" in text
    assert "stage second: 91." in text


def test_same_metrics_give_the_same_page(tmp_path):
    assert report(full(), tmp_path) == report(copy.deepcopy(full()), tmp_path)


def test_numbers_are_written_for_people():
    assert [count(n) for n in (12, 4_400_000, 66_362_880, 1.5e9)] == ["12", "4.4 M", "66.4 M", "1.5 B"]
    assert [significant(n) for n in (0, 1240.4, 12.41, 0.01234, 1.2e-5)] == [
        "0",
        "1,240",
        "12.4",
        "0.0123",
        "0.0000120",
    ]
    assert [difference("accuracy", n) for n in (0.019, -0.0001, -0.012)] == ["+1.9", "0.0", "\u22121.2"]
    assert [times(n) for n in (1.94, 0.82, 12.4)] == ["1.9x", "0.8x", "12x"]
    assert [duration(n) for n in (4.4, 725, 11040)] == ["4 s", "12 min 5 s", "3 h 4 min"]
    assert [p_value(n) for n in (0.0004, 0.0312, 1.0)] == ["p < 0.001", "p = 0.031", "p = 1"]
    assert score("spearman", -0.5) == "-0.500"
    assert bounds("accuracy", 0.9, None) == ""


def test_losses_over_two_decades_have_plain_ticks(tmp_path):
    metrics = full()
    for entry in metrics["training"]["student"]["history"]["distill"]:
        if "loss" in entry:
            entry["loss"] /= 10 ** entry["epoch"]
    text = report(metrics, tmp_path)
    assert "mathdefault" not in text
    assert ">0.01</text>" in text
    assert ">0.02</text>" not in text  # over many decades there is no room for more than one tick of each


# --- what runs with plain text, several stages and other students say ---------------------------------------------


def test_each_stage_is_told_with_what_it_is_about():
    transfer, words_, follow, tune = stages(recipe_of(SYSTEM), system())
    assert transfer == (
        "transfer: on plain text, packed; layer after layer; 1 x attention (form kl, layers uniform) + "
        "1 x feature map (normalised 100, mean 5000, variance 5, layers uniform); 3 epochs shared by the layers, "
        "learning rate 5e-05, batch size 32, no dropout"
    )
    assert words_ == (
        "words: on plain text, 15 % masked by whole words; 0.5 x soft targets (temperature 1, positions masked, "
        "form kl) + 0.5 x masked words; 1 epoch, learning rate 5e-05, batch size 32, "
        "each layer left out with chance 0.25"
    )
    assert follow.startswith(
        "follow: on the transfer set; 1 x hidden (form cosine, layer 1 from the teacher's 3, "
        "last layer from the teacher's last) + 1 x relations (of queries, keys, heads 8, "
        "last layer from the teacher's last); "
    )
    assert tune.startswith("fine-tune: on the transfer set; cut to half of its layers (alternate); 1 x hard labels + ")
    same = system()
    same["data"]["transfer"] = same["data"]["train"]
    assert "transfer set" not in stages(recipe_of(SYSTEM), same)[2]
    own = recipe_of(SYSTEM, **{"stages.fine-tune.on": "train", "stages.fine-tune.keep": [0, 2]})
    told = stages(own, system())[3]
    assert told.startswith("fine-tune: on the labelled examples; cut to its layers 0, 2 (counted from 0); ")
    assert stages(recipe_of(WORDS), words())[0].startswith("distill: on plain text, 15 % masked; 5 x soft targets (")


def test_a_number_has_no_temperature_but_the_words_of_its_text_stage_do():
    metrics = system()
    metrics["task"]["kind"] = "regression"
    _, words_, _, tune = stages(recipe_of(SYSTEM, task="regression"), metrics)
    assert "soft targets (temperature 1" in words_
    assert "1 x soft targets;" in tune


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        ({"from": "teacher", "layers": [3]}, "the teacher's embeddings, head and layer 3 (counted from 0)"),
        (
            {"from": "teacher", "layers": [0, 2], "architecture": "distilbert", "random": ["classifier"]},
            "the teacher's embeddings and layers 0, 2 (counted from 0), as a distilbert model with a fresh head",
        ),
        (
            {"from": "teacher", "layers": [0, 2], "architecture": "distilbert"},
            "the teacher's embeddings, head and layers 0, 2 (counted from 0), as a distilbert model",
        ),
        ({"from": "checkpoint", "model": "a/b/c/start"}, "the checkpoint start"),
        (
            {"from": "checkpoint", "model": "start", "layers": [0, 1]},
            "embeddings, head and layers 0, 1 (counted from 0) of the checkpoint start",
        ),
        ({"from": "model object", "model": "memory:1"}, "a model in memory"),
        (
            {"from": "random weights", "shape": {"hidden_size": 8}},
            "random weights; the teacher's configuration with hidden_size 8",
        ),
        (
            {"from": "random weights", "shape": {"model_type": "electra"}, "tokenizer": "/home/me/tokens"},
            "random weights; architecture electra; the tokenizer of tokens",
        ),
        (
            {"from": "random weights", "shape": {"hidden_size": 8}, "embeddings": ["word_embeddings.weight"]},
            "random weights; the teacher's configuration with hidden_size 8; the teacher's embeddings",
        ),
        ({}, None),
    ],
)
def test_every_start_is_told(origin, told):
    assert started(origin) == told


def test_who_teaches_on_plain_text_is_told():
    assert text_teacher(recipe_of(RECIPE)) is None
    assert text_teacher(recipe_of(SYSTEM)) == "general (stages transfer, words)"
    assert text_teacher(recipe_of(SYSTEM, **{"teacher.general": None, "stages.words": None})) == (
        "the teacher's own body (stage transfer)"
    )
    assert text_teacher(recipe_of(SYSTEM, assistant={"layers": 6})) == (
        "an assistant, itself distilled from general first; it started from 6 of the teacher's layers (spaced) "
        "(stages transfer, words)"
    )
    assert text_teacher(recipe_of(WORDS)) is None
    assert "distilled from the teacher first" in text_teacher(recipe_of(WORDS, assistant={"shape": {"hidden_size": 8}}))


def test_data_and_augmentation_are_told():
    assert augmentation(recipe_of(RECIPE)) is None
    assert augmentation(recipe_of(SYSTEM)) == (
        "up to 2 copies of each training text, each word replaced with chance 0.5 by one of the 15 likeliest of lm, "
        "or nearest by the teacher's input embeddings"
    )
    tang = "{mask: 0.1, same_tag: 0.2, ngram: 0.25, copies: 3}"
    made = SYSTEM.replace("{model: some/where/lm, copies: 2, probability: 0.5}", tang)
    assert augmentation(recipe_of(made)) == (
        "up to 3 copies of each training text, each word masked with chance 0.1 or swapped for one of its part of "
        "speech with chance 0.2 and cut to a few words with chance 0.25"
    )
    metrics = system()
    metrics["data"]["corpus"] = 120_000
    assert data(metrics).endswith("1,900 test; 120,000 lines of plain text.")
    assert data(words()) == (
        "Lines of plain text: 15,200 train, 1,900 validation; 1,900 test lines with one word hidden."
    )


def test_the_baseline_of_a_system_learns_from_words_too(tmp_path):
    text = "trained on masked words and the labels alone"
    assert text in verdict(system())
    assert text in write_card(system(), SYSTEM, tmp_path).read_text("utf-8")
    assert "over training on masked words and the labels alone" in report(system(), tmp_path, SYSTEM)
    assert "trained on the labels alone" in verdict(full())


def test_losses_of_different_terms_and_words_and_the_task_s_metric_have_plots_of_their_own(tmp_path):
    page = report(system(), tmp_path, SYSTEM)
    shown = plots(page)
    for heading in (
        "Loss of the student: transfer",
        "Loss of the student: words",
        "Loss of the student: follow",
        "Loss of the student: fine-tune",
        "Loss of the baseline: transfer, words",
        "Loss of the baseline: follow, fine-tune",
        "Validation",
        "Masked words",
    ):
        assert heading in shown
    assert "One layer after the other." in page
    assert "attention from" in shown["Loss of the student: transfer"]
    assert "hard labels" not in shown["Loss of the student: transfer"]
    # The baseline's three epochs of `transfer`, ten steps each, come before `words`; the student has no words there.
    reached = (
        r"Baseline, stage transfer: \S+ % at step 30; Baseline, stage words: \S+ % at step 40; Student, stage words"
    )
    assert re.search(reached, shown["Masked words"])
    assert "transfer" not in shown["Validation"]
    assert shown["Validation"].endswith("at step 50.")  # two epochs of `follow`, three of `fine-tune`
    assert page.count(">transfer-1<") == 0
    assert "Student, transfer: 3 min 3 s" in page
    assert "Baseline, transfer: 1 min 1 s" in page


def test_page_and_card_of_a_language_model(tmp_path):
    page = report(words(), tmp_path, WORDS)
    assert "Masked words" in plots(page)
    assert "Validation" not in plots(page)
    for part in (">Hidden word</th>", "prediction that is the hidden word", "one word in each test line"):
        assert part in page
    card = write_card(words(), WORDS, tmp_path).read_text("utf-8")
    for part in (
        "This model fills in masked words",
        'pipeline("fill-mask", model=name)',
        "AutoModelForMaskedLM.from_pretrained(name)",
        "It was trained on texts of up to 64 tokens.",
        "- Lines of plain text: 15,200 train",
    ):
        assert part in card
    assert "classes" not in card


def test_what_is_said_of_a_model_that_writes_is_about_text_and_tokens(tmp_path):
    metrics = writer()
    assert "; trained on the text alone, the same student reaches" in verdict(metrics)
    assert " of the test tokens; the mean KL" in fidelity(metrics)
    assert "On 500 test examples" in printed(metrics)
    card = " ".join(write_card(metrics, WRITER, tmp_path).read_text("utf-8").split())
    assert "for this one test set of 500 examples" in card
    assert "trained on the text alone" in card
    page = report(metrics, tmp_path, WRITER)
    assert "The same student on the text alone." in page
    assert "the labels" not in page


def test_card_says_how_a_model_opens_that_transformers_does_not_know(tmp_path):
    for kind, needed in (("mobilebert", False), ("ib-bert", True), ("bilstm", True)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        card = write_card(words(), WORDS, tmp_path).read_text("utf-8")
        assert ("\nimport limbeck.students" in card) == needed
        assert ("loads in plain `transformers`" in card) != needed


def test_card_of_a_model_without_a_teacher_does_not_call_it_distilled(tmp_path):
    recipe = RECIPE.replace(
        "teacher: {models: [{model: somewhere/else/big-teacher}]}\nstudent: {layers: 6}", "student: m"
    )
    recipe = recipe.replace("soft_targets: {weight: 0.9, temperature: 2.0, form: kl}, ", "")
    card = write_card(alone(), recipe, tmp_path).read_text("utf-8")
    assert "knowledge-distillation" not in card
    assert "It was trained by Limbeck" in card
