"""Prompts that share their beginnings are answered as lm-eval's own model class answers them."""

import random
from pathlib import Path

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

import architectures
import tiny
from kinship_daemon.errors import ModelError
from kinship_daemon.evaluate.live import LiveModel
from kinship_daemon.evaluate.settings import Cost

LETTERS = "abcdefghij "
NAMES = (*architectures.ARCHITECTURES, "GPT2LMHeadModel")


def model_folder(name: str, folder: Path, **config: object) -> Path:
    if name != "GPT2LMHeadModel":
        if name == "Gemma2ForCausalLM":
            # A window as long as any prompt; tied, it would say one letter for ever.
            config = {"sliding_window": 160, "tied": False, **config}
        return architectures.base(name, folder, dtype=torch.float32, **config)
    torch.manual_seed(0)
    shape = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = {"vocab_size": tiny.VOCABULARY, "initializer_range": 0.2, **shape, **special, **config}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).save_pretrained(folder)
    tiny.tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=NAMES)
def folder(request, tmp_path_factory) -> Path:
    return model_folder(request.param, tmp_path_factory.mktemp("model"))


def both(folder: Path, **changes: object) -> tuple[HFLM, LiveModel]:
    """lm-eval's class and ours, on the same model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    live = LiveModel(model, tokenizer, 4)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), live


def requests(pairs, kind="loglikelihood") -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=pair, idx=i, metadata=("task", i, 1))
        for i, pair in enumerate(pairs)
    ]


def text(rng: random.Random, least: int, most: int) -> str:
    return "".join(rng.choices(LETTERS, k=rng.randint(least, most))).strip() or "a"


def few_shot(count=10, choices=4, preamble=30, seed=0):
    rng = random.Random(seed)
    shown = text(rng, preamble, preamble) + "\n"
    questions = [shown + text(rng, 3, 25) + "?" for _ in range(count)]
    return [(question, text(rng, 1, 7)) for question in questions for _ in range(choices)]


def one_token():
    return [(question, letter) for question, _ in few_shot(choices=1) for letter in "abcd"]


def zero_shot():
    rng = random.Random(1)
    questions = [text(rng, 20, 60) + "?" for _ in range(8)]
    return [(question, text(rng, 5, 20)) for question in questions for _ in range(4)]


def two_contexts():
    """As winogrande: the answer is the same, what stands before it is not."""
    rng = random.Random(2)
    made = []
    for _ in range(8):
        begin, end = text(rng, 10, 20), text(rng, 3, 9)
        made += [(begin + option, end) for option in ("ab", "cdef")]
    return made


def nothing_shared():
    rng = random.Random(3)
    return [(text(rng, 5, 40), text(rng, 1, 9)) for _ in range(20)]


def cut_from_the_left():
    rng = random.Random(4)
    questions = [text(rng, 110, 140) + "?" for _ in range(6)]
    return [(question, text(rng, 1, 9)) for question in questions for _ in range(4)]


def mixed():
    """Empty questions, answers that begin others, the same request twice."""
    shared = few_shot(count=4)
    question = shared[0][0]
    odd = [("", "abc"), (question, "a"), (question, "ab"), (question, "abc"), (question, "abc")]
    return [*shared, *odd, (question[:20], question[20:30])]


SHAPES = {
    shape.__name__: shape
    for shape in (
        *(few_shot, one_token, zero_shot, two_contexts),
        *(nothing_shared, cut_from_the_left, mixed),
    )
}


def assert_same(found, truth):
    assert [likelihood for likelihood, _ in found] == pytest.approx(
        [likelihood for likelihood, _ in truth], abs=1e-4
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in truth]


@pytest.mark.parametrize("shape", SHAPES)
def test_likelihoods_are_lm_evals(shape, folder):
    theirs, ours = both(folder)
    asked = SHAPES[shape]()
    truth = theirs.loglikelihood(requests(asked), disable_tqdm=True)
    found = ours.loglikelihood(requests(asked))
    assert_same(found, truth)
    assert 0 < ours.cost.computed <= ours.cost.lm_eval
    # In another order, and after other requests: the very same bits.
    order = random.Random(0).sample(range(len(asked)), len(asked))
    again = ours.loglikelihood(requests([asked[i] for i in order]))
    assert again == [found[i] for i in order]


def test_one_text_cut_into_question_and_answer_at_two_places(folder):
    """Of such a pair lm-eval takes the shorter answer's tokens at the longer one's places."""
    theirs, ours = both(folder)
    asked = [("abc?", "def"), ("abc?de", "f")]
    truth = [theirs.loglikelihood(requests([pair]), disable_tqdm=True)[0] for pair in asked]
    assert_same(ours.loglikelihood(requests(asked)), truth)


def test_greedy_answers_are_told(folder):
    """Random answers are never the greedy ones: these are, but for each third."""
    theirs, ours = both(folder)
    asked = [
        (question, answer if i % 3 else answer[::-1] + "z")
        for i, (question, _) in enumerate(few_shot(choices=1))
        if (answer := _greedy(ours, question))
    ]
    asked += [(question, "a") for question, _ in asked]
    truth = theirs.loglikelihood(requests(asked), disable_tqdm=True)
    assert_same(ours.loglikelihood(requests(asked)), truth)
    assert len({greedy for _, greedy in truth}) == 2


def _greedy(live: LiveModel, question: str) -> str:
    ids = live.tok_encode(question)
    for _ in range(3):
        logits = live.model(torch.tensor([ids])).logits[0, -1]
        logits[: len(tiny.SPECIAL)] = -torch.inf
        ids.append(int(logits.argmax()))
    answer = live.tokenizer.decode(ids[-3:])
    return answer if answer.strip() == answer else ""


def with_bos(folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    core = tokenizer.backend_tokenizer
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save_pretrained(folder)
    return folder


def merging_tokens(folder: Path) -> Path:
    """A tokenizer that makes one token of two letters, wherever they come from."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    core = tokenizer.backend_tokenizer
    vocabulary = {**tokenizer.get_vocab()}
    merged = {"?a": vocabulary["!"], "ab": vocabulary["z"], "ef": vocabulary["y"]}
    kept = {token: i for token, i in vocabulary.items() if token not in "!zy"}
    made = Tokenizer(
        models.BPE(
            {**kept, **merged},
            [tuple(pair) for pair in merged],
            unk_token="<unk>",
        )
    )
    made.decoder = core.decoder
    tokenizer._tokenizer = made
    tokenizer.save_pretrained(folder)
    return folder


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def in_chat(live: LiveModel, question: str) -> str:
    live.tokenizer.chat_template = TEMPLATE
    return live.apply_chat_template([{"role": "user", "content": question}])


@pytest.mark.parametrize("change", [with_bos, merging_tokens])
@pytest.mark.parametrize("shape", ["few_shot", "two_contexts", "mixed", "chat"])
def test_whatever_the_tokenizer_does(change, shape, tmp_path):
    folder = change(model_folder("MistralForCausalLM", tmp_path / "model"))
    theirs, ours = both(folder)
    if change is with_bos:
        assert ours.tok_encode("a")[0] == 1
    else:
        assert len(ours.tok_encode("?a")) == 1
    if shape == "chat":
        asked = [(in_chat(ours, question), answer) for question, answer in few_shot()]
        assert asked[0][0].startswith("<s>[user]")
    else:
        asked = SHAPES[shape]()
    # One token may span both: what we do then is not lm-eval's, which would fail.
    theirs._encode_pair = ours._encode_pair
    truth = theirs.loglikelihood(requests(asked), disable_tqdm=True)
    assert_same(ours.loglikelihood(requests(asked)), truth)
    prompts = [question for question, _ in asked if question]
    truth = theirs.generate_until(writing(prompts), disable_tqdm=True)
    assert ours.generate_until(writing(prompts)) == truth


@pytest.mark.parametrize("side", ["left", "right"])
def test_whichever_side_the_tokenizer_pads(side, folder):
    theirs, ours = both(folder, padding_side=side)
    asked = few_shot()
    truth = theirs.loglikelihood(requests(asked), disable_tqdm=True)
    assert_same(ours.loglikelihood(requests(asked)), truth)


def test_what_is_shared_is_computed_once(folder):
    _, ours = both(folder)
    shown = "example," * 8
    questions = ["which,of,these,is,it?", "or,what,is,it,really?", "why?", "when,and,where?"]
    answers = ["ab", "bcd", "cdef", "efghi"]
    ours.loglikelihood(requests([(shown + q, answer) for q in questions for answer in answers]))
    asked = sum(len(q) for q in questions)
    rest = sum(len(answer) - 1 for answer in answers)  # nothing comes after the last token
    whole = 16 * len(shown) + 4 * asked + 4 * rest
    assert ours.cost == Cost(len(shown) + asked + 4 * rest, whole)
    before = ours.cost
    ours.loglikelihood(requests([(shown + q, letter) for q in questions for letter in "abcd"]))
    assert ours.cost == before + Cost(len(shown) + asked, 4 * len(shown) + asked)


def test_a_window_shorter_than_the_prompts_is_asked_lm_evals_way_and_said_once(tmp_path, caplog):
    folder = model_folder("Gemma2ForCausalLM", tmp_path / "model", sliding_window=16)
    theirs, ours = both(folder)
    ours.identity = "sha256:x"
    asked = few_shot()
    truth = theirs.loglikelihood(requests(asked), disable_tqdm=True)
    for _ in range(2):
        assert ours.loglikelihood(requests(asked)) == truth
    assert ours.cost.computed == ours.cost.lm_eval
    (said,) = [r.getMessage() for r in caplog.records if "computed whole" in r.getMessage()]
    assert said.startswith("sha256:x: every prompt is computed whole, for its sliding window of 16")


STATES = {
    "MambaForCausalLM": {"state_size": 4, "conv_kernel": 2, "time_step_rank": 4},
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2},
}


@pytest.mark.parametrize("name", STATES)
def test_state_space_and_hybrid_models_are_asked_lm_evals_way(name, tmp_path, caplog):
    model_class = getattr(transformers, name, None)
    if model_class is None:
        pytest.skip(f"this transformers has no {name}")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = {"vocab_size": tiny.VOCABULARY, "intermediate_size": 64, **shape, **special}
    made = model_class(model_class.config_class(**config, **STATES[name]))
    made.save_pretrained(tmp_path)
    tiny.tokenizer(tmp_path)
    theirs, ours = both(tmp_path)
    asked = few_shot(count=3)
    truth = theirs.loglikelihood(requests(asked), disable_tqdm=True)
    assert ours.loglikelihood(requests(asked)) == truth
    assert "every prompt is computed whole" in caplog.text


def test_nan_is_found_wherever_it_is(tmp_path):
    folder = model_folder("LlamaForCausalLM", tmp_path / "model")
    _, ours = both(folder)
    with torch.no_grad():
        ours.model.model.layers[0].self_attn.v_proj.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="its logits reach nan"):
        ours.loglikelihood(requests(few_shot()))


def writing(prompts, **settings):
    given = {"until": ["\n"], "max_gen_toks": 12, **settings}
    return requests([(prompt, dict(given)) for prompt in prompts], "generate_until")


@pytest.mark.parametrize("until", [["\n"], ["ab", "c", "."]])
def test_greedy_texts_are_lm_evals(until, folder):
    theirs, ours = both(folder)
    prompts = [question for question, _ in few_shot(choices=1, count=7)]
    truth = theirs.generate_until(writing(prompts, until=until), disable_tqdm=True)
    assert ours.generate_until(writing(prompts, until=until)) == truth
    assert len(set(truth)) > 1
    assert ours.cost.computed < ours.cost.lm_eval
    assert ours.cut == 0
    # Whatever was asked before, and where nothing is shared.
    single = [theirs.generate_until(writing([prompt], until=until), True)[0] for prompt in prompts]
    assert [ours.generate_until(writing([prompt], until=until))[0] for prompt in prompts] == single


def test_prompts_of_texts_that_are_cut_are_cut_as_lm_eval_cuts_them_and_counted(tmp_path):
    theirs, ours = both(model_folder("LlamaForCausalLM", tmp_path))
    prompts = [question for question, _ in (*cut_from_the_left()[::4], *few_shot(choices=1)[:3])]
    truth = theirs.generate_until(writing(prompts), disable_tqdm=True)
    assert ours.generate_until(writing(prompts)) == truth
    room = ours.max_length - 12
    assert ours.cut == sum(len(ours.tok_encode(prompt)) > room for prompt in prompts)
    assert 0 < ours.cut < len(prompts)


def test_a_model_that_names_a_cache_of_its_own_shares_all_the_same(tmp_path):
    """As Gemma 2 does."""
    theirs, plain = both(model_folder("LlamaForCausalLM", tmp_path))
    prompts = [question for question, _ in few_shot(choices=1)]
    truth = theirs.generate_until(writing(prompts), disable_tqdm=True)
    theirs.model.generation_config.cache_implementation = "static"
    ours = LiveModel(theirs.model, plain.tokenizer, 4)
    assert ours.generate_until(writing(prompts)) == truth
    assert ours.cost.computed < ours.cost.lm_eval


def test_prompts_longer_than_the_model_reads_are_cut_as_lm_eval_cuts_them(folder):
    theirs, ours = both(folder)
    prompts = [question for question, _ in few_shot(choices=1, preamble=110)]
    truth = theirs.generate_until(writing(prompts), disable_tqdm=True)
    assert ours.generate_until(writing(prompts)) == truth


def test_a_stop_string_ends_its_row(tmp_path):
    """lm-eval goes on until every row has the same one of them."""
    theirs, ours = both(model_folder("LlamaForCausalLM", tmp_path))
    prompts = [question for question, _ in few_shot(choices=1, count=4)]
    until = list(tiny.ALPHABET)
    passes, texts = {}, {}
    for asked in (theirs, ours):
        counted = []
        hook = asked.model.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        texts[asked] = asked.generate_until(writing(prompts, until=until), disable_tqdm=True)
        hook.remove()
        passes[asked] = len(counted)
    assert texts[ours] == texts[theirs]
    assert passes[ours] == 2  # what they begin with, and what all go on with
    assert passes[theirs] == 12


def test_drawn_texts_are_drawn_by_lm_eval(folder):
    theirs, ours = both(folder)
    prompts = [question for question, _ in few_shot(choices=1, count=3)]
    drawn = []
    for asked in (theirs, ours):
        torch.manual_seed(7)
        settings = {"do_sample": True, "temperature": 0.8}
        drawn.append(asked.generate_until(writing(prompts, **settings), disable_tqdm=True))
    assert drawn[0] == drawn[1]
