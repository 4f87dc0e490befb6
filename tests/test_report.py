"""The report: the terminal table, the model card and the HTML page, from one realistic set of metrics."""

import copy
import html.parser
import math
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from limbeck.report import metrics_table, write_card, write_report
from limbeck.report.numbers import bounds, count, difference, duration, p_value, score, significant, times
from limbeck.report.sentences import comparison, speed_terms, verdict
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


def history(terms: tuple[str, ...], epochs: int, top: float) -> list[dict]:
    logs: list[dict] = []
    for step in range(1, epochs * 10 + 1):
        epoch, value = step / 10, 0.2 + 1.1 * math.exp(-step / 8)
        parts = {term: value * (1 + i) for i, term in enumerate(terms)}
        logs.append({"loss": value, "grad_norm": 1.0, "learning_rate": 5e-5, **parts, "epoch": epoch, "step": step})
        if step % 10 == 0:
            reached = top - 0.08 * math.exp(-epoch)
            logs.append({"eval_accuracy": reached, "eval_runtime": 1.0, "epoch": epoch, "step": step})
    return [*logs, {"train_runtime": 61.0, "train_loss": 0.4, "total_flos": 1e12, "epoch": float(epochs), "step": 30}]


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


CASES = {"full": full, "bare": bare, "regression": regression, "alone": alone, "multi-label": multi_label}


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


def test_speeds_are_told_with_their_terms():
    metrics = full()
    metrics["student_int8"]["speed"]["precision"] = "int8"
    assert speed_terms(metrics) == (
        "Latency is the median for one example at a time; throughput at batch size 32; 4 threads; "
        "float32 (Student, int8: int8); speed-up is the teacher's latency over the model's."
    )
    assert speed_terms(bare()) is None


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
    path = write_card(metrics, RECIPE, folder)
    assert path == folder / "README.md"
    card = huggingface.ModelCard(path.read_text("utf-8"), ignore_metadata_errors=False)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.tags == ["limbeck", "knowledge-distillation"]
    assert card.data.model_name == "reviews"
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    quality = metrics["student"]["quality"]
    assert list(results.values()) == [round(measured["value"], 6) for measured in quality.values()]
    assert {result.dataset_type for result in card.data.eval_results} == {"reviews"}
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
        "0.1 x hard labels + 0.9 x soft targets (temperature 2.0, form kl)",
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
    text = report(CASES[case](), tmp_path)
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
    assert ">0.02</text>" in text
