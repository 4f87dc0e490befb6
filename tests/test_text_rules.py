"""Rules about generated text: judging, projecting token by token, constrained decoding, choosing among candidates."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_reviews, write_csv, write_jsonl
from scipy.optimize import minimize
from scipy.special import rel_entr, softmax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from limbeck.errors import InputError
from limbeck.rules import load_rules, rerank, violations
from limbeck.rules.text import TextRules
from limbeck.rules.tokens import RulesProcessor, TokenRules

PIECES = ["ab", "ba", " bad", " good", "{\"", "\": ", "\", \"", "\"}", "good", "mood"]  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["mood", "n"],
    "additionalProperties": False,
}


def make_text_tokenizer(pieces: list[str]) -> PreTrainedTokenizerFast:
    """Single characters and some pieces of several; an end token."""
    letters = [chr(number) for number in range(32, 127)] + ["\n"]
    alphabet = [pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(each)[0][0] for each in letters]
    merged = [piece.replace(" ", "Ġ") for piece in pieces]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(["<end>", *alphabet, *merged]))}
    merges: list[tuple[str, str]] = []
    for piece in merged:  # built letter by letter, each step a token of its own
        for end in range(2, len(piece) + 1):
            vocabulary.setdefault(piece[:end], len(vocabulary))
            if (piece[: end - 1], piece[end - 1]) not in merges:
                merges.append((piece[: end - 1], piece[end - 1]))
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = make_text_tokenizer(PIECES)
    assert made.decode(made("a bad mood")["input_ids"]) == "a bad mood"
    return made


@pytest.fixture(scope="module")
def letters() -> PreTrainedTokenizerFast:
    """One token a character: every text can be cut in one way alone."""
    return make_text_tokenizer([])


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A random language model whose vocabulary is padded."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 9, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, initializer_range=0.4, eos_token_id=0, pad_token_id=0, bos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def book(*entries: dict[str, Any]) -> Any:
    return load_rules([{"name": f"rule {number}"} | entry for number, entry in enumerate(entries)])


# --- judging ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("demand", "kept", "broken"),
    [
        ({"regex": r"\d+ (cats|dogs)"}, ["3 cats", " 12 dogs\n"], ["3 cats.", "cats", ""]),
        ({"answers": ["yes", "no way"]}, ["yes", "no way "], ["Yes", "no", "yes no way"]),
        ({"avoid": ["bad", "so so"]}, ["badge", "it is so", ""], ["a BAD day", "so  so!", "bad"]),
        ({"avoid": "bad*"}, ["abad", "b ad"], ["badge", "a Bad day"]),
        ({"max_words": 3}, ["one two three", ""], ["one two three four"]),
        (
            {"json_schema": SCHEMA},
            ['{"mood": "bad", "n": 3}', '{"n":0,\n "mood":"good"}'],
            ['{"mood": "bad"}', '{"mood": "bad", "n": 10}', '{"mood": "bad", "n": 3', "bad", '{"mood":"bad","n":NaN}'],
        ),
        ({"grammar": 'start: "a" start "b" | "c"'}, ["c", "aacbb"], ["aacb", "", "cc"]),
    ],
)
def test_an_output_breaks_a_rule_or_keeps_it(demand, kept, broken):
    rules = TextRules(book(demand))
    assert rules.broken(["p"] * len(kept), kept)[:, 0].tolist() == [False] * len(kept)
    assert rules.broken(["p"] * len(broken), broken)[:, 0].tolist() == [True] * len(broken)


def test_rates_count_the_outputs_whose_prompts_a_rule_is_about():
    rules = book(
        {"when": ["colour"], "answers": ["red", "blue"]}, {"avoid": "very", "weight": 2}, {"max_words": 2, "weight": 1}
    )
    prompts = ["a colour", "a colour", "a size", "a size"]
    found = violations(rules, prompts, ["red", "green", "green", "very very big"])
    assert (found["hard"], found["soft"]) == (0.25, 0.25)
    assert [(each["applies"], each["broken"]) for each in found["by_rule"].values()] == [
        (2, 0.25),
        (4, 0.25),
        (4, 0.25),
    ]
    with pytest.raises(InputError, match="4 prompts and 1 outputs"):
        violations(rules, prompts, ["red"])


def test_the_chosen_candidate_is_the_likeliest_after_the_penalties():
    rules = book({"regex": "[a-z ]+"}, {"avoid": "very", "weight": 2}, {"max_words": 2, "weight": 0.5})
    candidates = [["very big", "big", "HUGE"], ["one two three", "very one"], ["A", "B"]]
    assert rerank(rules, ["p"] * 3, candidates, [[-1, -2.9, 0], [-1, -0.5], [-3, -2]]) == [1, 0, 1]
    assert rerank(rules, ["p"], [["very big", "big"]], [[-1, -3.1]]) == [0]


# --- token by token -----------------------------------------------------------------------------------------------

LANGUAGE = ["ab", "abc", "ba", "bab", "a"]


def by_hand(texts: list[str], history: list[int], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Which tokens some text of a finite language goes on with, by going through all of them."""
    before = tokenizer.decode(history)
    pieces = [tokenizer.decode([number]) for number in range(len(tokenizer))]
    allowed = [any(text.startswith(before + piece) for text in texts) for piece in pieces]
    allowed[tokenizer.eos_token_id] = before in texts
    return np.array(allowed)


def test_the_projection_of_the_next_token_is_that_of_all_texts_gone_through_by_hand(letters):
    rules = TokenRules(book({"regex": "ab?c?|ba|bab"}, {"answers": ["ab", "bab", "x"], "weight": 1.2}), letters)
    texts = [text for text in [*LANGUAGE, "ac"] if re.fullmatch("ab?c?|ba|bab", text)]
    draw = np.random.default_rng(0)
    for text in texts:
        completion = [*letters(text)["input_ids"], letters.eos_token_id]
        logits = torch.from_numpy(draw.normal(size=(len(completion), len(letters))))
        masks = rules.masks("a prompt", completion)
        found = rules.project(logits, masks)
        off = False
        for place, p in enumerate(softmax(logits.numpy(), axis=1)):
            hard = by_hand(texts, completion[:place], letters)
            soft = by_hand(["ab", "bab", "x"], completion[:place], letters)
            q = p * hard * np.exp(-1.2 * (~soft & (not off)))
            np.testing.assert_allclose(softmax(found[place].numpy()), q / q.sum(), rtol=1e-12, atol=1e-300)
            off |= not soft[completion[place]]


def test_hard_rules_project_the_next_token_once_and_for_all(tokenizer):
    rules = TokenRules(book({"json_schema": SCHEMA}, {"avoid": "bad"}), tokenizer)
    completion = [*tokenizer('{"mood": "good", "n": 4}')["input_ids"], tokenizer.eos_token_id]
    for kind in (torch.float64, torch.float32, torch.bfloat16):
        logits = torch.randn(len(completion), len(tokenizer), generator=torch.Generator().manual_seed(0)).to(kind)
        masks = rules.masks("p", completion)
        once = rules.project(logits, masks)
        assert once.dtype == kind
        torch.testing.assert_close(rules.project(once, masks), once, rtol=0, atol=0)
        chosen = once.float().softmax(-1)[range(len(completion)), completion]
        assert (chosen > 0).all()  # the completion itself keeps the rules
        assert not torch.equal(once, logits)


def test_the_projected_distribution_is_the_nearest_in_kl(letters):
    rules = TokenRules(book({"regex": "[abc ]+"}, {"regex": "[ab ]*", "weight": 0.9}), letters)
    logits = torch.randn(1, len(letters), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q = softmax(rules.project(logits, rules.masks("p", [0]))[0].numpy())
    allowed = by_hand([f"{one}{two}" for one, two in itertools.product("abc ", repeat=2)], [], letters)
    cost = 0.9 * ~by_hand([f"{one}{two}" for one, two in itertools.product("ab ", repeat=2)], [], letters)
    p, cost = softmax(logits[0].numpy())[allowed], cost[allowed]
    assert set(cost) == {0, 0.9}
    best = minimize(lambda free: rel_entr(softmax(free), p).sum() + softmax(free) @ cost, np.zeros(len(p)), tol=1e-12)
    np.testing.assert_allclose(q[allowed], softmax(best.x), atol=1e-5)
    assert (q[~allowed] == 0).all()


def test_nothing_is_projected_where_the_completion_has_left_the_grammar(tokenizer):
    rules = TokenRules(book({"regex": "a+"}), tokenizer, vocabulary=len(tokenizer) + 40)
    completion = tokenizer("aaxa")["input_ids"]
    logits = torch.randn(len(completion), len(tokenizer) + 40)
    found = rules.project(logits, rules.masks("p", completion))
    changed = (found != logits).any(1).tolist()
    assert changed == [True, True, True, False]  # the token that leaves it is not in the projected teacher
    assert found[2].softmax(-1)[completion[2]] == 0
    assert (found[:3].softmax(-1)[:, len(tokenizer) :] == 0).all()  # padding of the vocabulary is no token


def test_only_the_rules_about_a_prompt_act_on_its_completion(letters):
    rules = TokenRules(book({"when": ["colour"], "answers": ["ab"]}, {"when": "size", "avoid": "a"}), letters)
    assert (rules.masks("neither", [5, 6]) == -1).all()
    allowed = by_hand(["ab"], [], letters)
    found = rules.project(torch.zeros(1, len(letters)), rules.masks("a colour", [5]))
    assert ((found[0].softmax(-1) > 0).numpy() == allowed).all()


# --- decoding -----------------------------------------------------------------------------------------------------

HARD = [
    ({"regex": "[a-c]{1,6}( [a-c]{1,6}){0,2}"}, {"avoid": ["a", "b", "bad"]}),
    ({"json_schema": SCHEMA},),
    ({"grammar": 'start: "a" start "b" | "c" | "d"'}, {"max_words": 1}),
    ({"answers": ["good mood", "bad", "none at all"]}, {"avoid": "bad"}),
    ({"regex": "[a-c ]{1,25}"}, {"avoid": ["b*", "a a", "ca*"]}),
    ({"avoid": [f"{letter}*" for letter in "abcdefghij"]},),
    ({"regex": "[a-z ]{1,25}"}, {"max_words": 2}, {"avoid": ["x"]}),
]


@pytest.mark.parametrize("rules", HARD)
@pytest.mark.parametrize(
    "way", [{}, {"do_sample": True, "num_return_sequences": 5, "temperature": 3.0}, {"num_beams": 3}]
)
def test_a_random_model_held_to_hard_rules_breaks_none(rules, way, tokenizer, model):
    made = book(*rules)
    prompts = ["one", "another prompt", "x"]
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    ready = TokenRules(made, tokenizer, model.config.vocab_size)
    torch.manual_seed(0)
    many = way.get("num_return_sequences", 1)
    asked = [prompt for prompt in prompts for _ in range(many)]

    def generate(**more: Any) -> list[str]:
        found = model.generate(**inputs, **way, **more, max_new_tokens=60, pad_token_id=0)
        return tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    held = generate(logits_processor=[RulesProcessor(ready, prompts)])
    assert violations(made, asked, held)["hard"] == 0, held
    assert violations(made, asked, generate())["hard"] > 0.5


def test_no_hard_rule_is_broken_on_a_thousand_prompts(tokenizer, model):
    prompts = [f"{'colour' if number % 2 else 'size'} {number}" for number in range(1000)]
    made = book({"when": ["colour"], "answers": ["good mood", "bad"]}, {"when": ["size"], "json_schema": SCHEMA})
    ready = TokenRules(made, tokenizer, model.config.vocab_size)
    tokenizer.padding_side = "left"
    outputs: list[str] = []
    torch.manual_seed(0)
    for start in range(0, 1000, 250):
        some = prompts[start : start + 250]
        inputs = tokenizer(some, return_tensors="pt", padding=True, return_token_type_ids=False)
        processor = RulesProcessor(ready, some)
        found = model.generate(
            **inputs, do_sample=True, max_new_tokens=40, pad_token_id=0, logits_processor=[processor]
        )
        outputs += tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    found = violations(made, prompts, outputs)
    assert found["hard"] == 0
    assert [each["applies"] for each in found["by_rule"].values()] == [500, 500]
    assert len(set(outputs)) > 15


def test_soft_rules_move_the_rate_as_their_weight_says(tokenizer, model):
    prompts = [f"prompt {number}" for number in range(40)]
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    rates = []
    for weight in (1e-3, 1.5, 20):
        made = book({"regex": "[ab]{4}"}, {"regex": "[^a]*", "weight": weight})
        torch.manual_seed(0)
        processor = RulesProcessor(TokenRules(made, tokenizer, model.config.vocab_size), prompts)
        found = model.generate(**inputs, do_sample=True, max_new_tokens=9, pad_token_id=0, logits_processor=[processor])
        outputs = tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        rate = violations(made, prompts, outputs)
        assert rate["hard"] == 0
        rates.append(rate["soft"])
    assert rates[0] > rates[1] > rates[2]
    assert rates[2] == 0


def test_two_grammars_that_meet_a_dead_end_end_the_text(tokenizer, model):
    made = book({"grammar": 'start: "ab" | "ca"'}, {"grammar": 'start: "aa" | "cc"'})
    processor = RulesProcessor(TokenRules(made, tokenizer, model.config.vocab_size), ["p"])
    inputs = tokenizer(["p"], return_tensors="pt", return_token_type_ids=False)
    found = model.generate(**inputs, max_new_tokens=9, pad_token_id=0, logits_processor=[processor])
    assert tokenizer.decode(found[0, 1:], skip_special_tokens=True) in ("a", "c")


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"allow": "cat"}], "has allow, which is about labels, and this is about generated text"),
        ([{"json_schema": {"type": "objct"}}], "rule 'rule 0': json_schema is no JSON Schema"),
        ([{"grammar": "start: other"}], "rule 'rule 0': grammar is no Lark grammar: .*other"),
        ([{"when": {"words": "a", "part": "text"}, "max_words": 3}], "a prompt is a single text"),
    ],
)
def test_rules_that_are_not_about_text_or_cannot_be_read_are_refused(entries, message):
    with pytest.raises(InputError, match=message) as refusal:
        TextRules(book(*entries))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"regex": "(?=a)b"}], "rule 'rule 0': regex cannot be followed in generation: .*look-around"),
        ([{"json_schema": {"type": "array", "uniqueItems": True}}], "json_schema cannot be followed.*uniqueItems"),
        ([{"answers": "ab"}, {"regex": "b+"}], "no text keeps the hard rules 'rule 0' and 'rule 1'"),
        ([{"answers": "bad"}, {"when": "x", "avoid": "bad"}], "no text keeps the hard rules 'rule 0' and 'rule 1'"),
    ],
)
def test_rules_that_no_text_can_follow_are_refused(entries, message, tokenizer):
    with pytest.raises(InputError, match=message) as refusal:
        TokenRules(book(*entries), tokenizer)
    assert "\n" not in str(refusal.value)


def test_schemas_and_grammars_may_stand_in_files_and_their_content_counts(tmp_path):
    (tmp_path / "form.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "form.lark").write_text('start: "a"\n')
    path = tmp_path / "rules.yaml"
    path.write_text("- {name: x, json_schema: form.json}\n- {name: y, grammar: form.lark, weight: 2}\n")
    loaded = load_rules(path)
    assert loaded.rules[0].json_schema == SCHEMA
    (tmp_path / "form.lark").write_text('start: "b"\n')
    assert load_rules(path).fingerprint != loaded.fingerprint


# --- the command line ---------------------------------------------------------------------------------------------


def test_the_command_line_counts_what_a_table_breaks(command: Any, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("- {name: short, max_words: 1}\n- {name: polite, avoid: ['no'], weight: 2, when: [please]}\n")
    rows = [{"prompt": "please", "said": "no"}, {"prompt": "now", "said": "no no"}, {"prompt": "please", "said": "yes"}]
    table = write_jsonl(tmp_path / "said.jsonl", rows)
    code, printed = command("rules", "check", str(rules), str(table), "output=said")
    assert code == 0, printed
    assert re.search(r"short[\s│]+hard[\s│]+3[\s│]+33.33 %", printed)
    assert re.search(r"polite[\s│]+2.0[\s│]+2[\s│]+33.33 %", printed)
    assert command("rules", "check", str(rules), str(table))[0] == 2
    rules.write_text(
        "- {name: good, when: [good], allow: positive}\n- {name: long, when: {min_words: 9}, forbid: positive}"
    )
    reviews = make_reviews(50)
    code, printed = command("rules", "check", str(rules), str(write_csv(tmp_path / "r.csv", reviews)))
    assert code == 0, printed
    broken = np.mean([len(row["text"].split()) >= 9 and row["label"] == "positive" for row in reviews])
    assert re.search(rf"long[\s│]+hard[\s│]+\d+[\s│]+{100 * broken:.2f} %", printed)
    assert re.search(r"good[\s│]+hard[\s│]+\d+[\s│]+0.00 %", printed)
