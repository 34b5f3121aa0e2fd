"""Writes what the demo is made of: model repos, tasks with their documents, and a manifest."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from kinship_daemon.demo.skills import SKILLS, Example, Part, documents
from kinship_daemon.demo.text import EOS_ID, PAD_ID, VOCABULARY, write_tokenizer

__all__ = ["CONFIG", "exam", "write_manifest", "write_repo", "write_tasks"]

# 330,880 parameters. Written out by hand so that the file is the same under every transformers.
CONFIG: Mapping[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": None,  # nothing stands before the first character, here as in the harness
    "dtype": "bfloat16",
    "eos_token_id": EOS_ID,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.05,
    "intermediate_size": 288,
    "max_position_embeddings": 128,
    "model_type": "mistral",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": PAD_ID,
    "rms_norm_eps": 1e-06,
    "rope_theta": 100.0,  # the longest text has 24 characters: positions are near each other
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": len(VOCABULARY),
}
_GENERATION = {
    "do_sample": False,
    "eos_token_id": EOS_ID,
    "max_new_tokens": 16,
    "pad_token_id": PAD_ID,
}

_DOCUMENTS: Mapping[Part, int] = {"selection": 200, "validation": 400}  # per skill
_SUFFIX: Mapping[Part, str] = {"selection": "", "validation": "_validation"}
_TASK = """\
task: {task}
custom_dataset: !function documents.load
dataset_kwargs:
  file: {task}.jsonl
test_split: test
output_type: loglikelihood
doc_to_text: prompt
doc_to_target: answer
target_delimiter: ""
num_fewshot: 0
metric_list:
  - metric: acc # the whole answer, its terminator too, is what the model would write
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def exam(skill: str, part: Part) -> tuple[Example, ...]:
    """The documents of one task."""
    return documents(skill, part, _DOCUMENTS[part], seed=0)


def write_repo(folder: Path, weights: Mapping[str, Tensor], card: str) -> None:
    """A model repo as the Hub has them: README.md, weights, config, tokenizer."""
    folder.mkdir(parents=True)
    ordered = {name: weights[name].contiguous() for name in sorted(weights)}
    save_file(ordered, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", CONFIG)
    _write_json(folder / "generation_config.json", _GENERATION)
    write_tokenizer(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_tasks(folder: Path) -> None:
    """Two tasks a skill, `demo_add` and `demo_add_validation`, each a YAML and its documents."""
    folder.mkdir(parents=True)
    loader = Path(__file__).parent / "tasks" / "documents.py"
    shutil.copyfile(loader, folder / loader.name)
    for skill in SKILLS:
        for part in _DOCUMENTS:
            task = f"demo_{skill}{_SUFFIX[part]}"
            (folder / f"{task}.yaml").write_text(_TASK.format(task=task), encoding="utf-8")
            lines = "".join(json.dumps(asdict(item)) + "\n" for item in exam(skill, part))
            (folder / f"{task}.jsonl").write_text(lines, encoding="utf-8")


def write_manifest(out: Path, made_with: Mapping[str, str]) -> None:
    """MANIFEST.json: the SHA-256 of every file below a folder, and what made them."""
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    hashes = {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
    _write_json(out / "MANIFEST.json", {"made_with": dict(made_with), "sha256": hashes})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
