"""One list of a model's files: what is fetched is what is read, carried along and published."""

import pytest

from kinship_daemon.hub.files import has_tokenizer, wanted
from kinship_daemon.hub.records import RepoFile
from kinship_daemon.weights import tokenizer
from kinship_daemon.weights.tokenizer import tokenizer_files

FAMILIES = [
    {"tokenizer.json"},
    {"tokenizer.model"},
    {"vocab.json", "merges.txt"},
    {"vocab.txt"},
    {"spiece.model"},
    {"sentencepiece.bpe.model"},
]
BESIDE = {
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool.jinja",
    "additional_chat_templates/rag.jinja",
}
OTHERS = {
    "README.md",
    "additional_chat_templates/run.py",
    "additional_chat_templates/deep/er.jinja",
    "other/tool.jinja",
    "checkpoint-9/tokenizer.json",
    "optimizer.pt",
}


def listed(names):
    return [RepoFile(path=name, size=1, sha256=None, blob=None) for name in sorted(names)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: "+".join(sorted(family)))
def test_hub_and_weights_know_the_same_tokenizer_files(tmp_path, family):
    for name in family | BESIDE | OTHERS:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    everything = listed(family | BESIDE | OTHERS)
    assert {file.path for file in wanted(everything)} == family | BESIDE
    assert set(tokenizer_files(tmp_path)) == family | BESIDE
    assert has_tokenizer(everything)
    assert tokenizer.has_tokenizer(tmp_path)


@pytest.mark.parametrize("names", [set(), {"vocab.json"}, {"merges.txt"}, BESIDE, OTHERS])
def test_hub_and_weights_miss_the_same_tokenizers(tmp_path, names):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert not has_tokenizer(listed(names))
    assert not tokenizer.has_tokenizer(tmp_path)
