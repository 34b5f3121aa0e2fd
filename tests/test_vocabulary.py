"""Models whose tokens differ: aligned by token string, joined as mergekit joins them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import architectures
import ledgers
import mergekit_oracle
import tiny
from kinship_daemon.errors import ModelError
from kinship_daemon.evaluate.live import LiveModel
from kinship_daemon.evaluate.model_slot import ModelSlot
from kinship_daemon.evaluate.settings import Evaluate, Settings
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.live_model import live_model
from kinship_daemon.weights.materialise import Assembly, assemble, leaf_assembly, write
from kinship_daemon.weights.recipe import Recipe, combine, leaf
from kinship_daemon.weights.vocabulary import Vocabulary, same, unite

EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
TEXT = "<|a|>7+5=12<|b|>ok"


def grown(base: Path, folder: Path, seed: int, tokens=(), rows: int = 0) -> Path:
    """A fine-tune with special tokens of its own, and at least so many rows."""
    tiny.finetune(base, folder, seed, scale=0.1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wanted = max(rows, len(tokenizer))
        model.resize_token_embeddings(wanted, mean_resizing=False)
        added = model.get_input_embeddings().weight.data[tiny.VOCABULARY :]
        added.copy_(torch.randn(added.shape))
    model.save_pretrained(folder)
    return folder


def permuted(base: Path, folder: Path, seed: int) -> Path:
    """A fine-tune that keeps the letters in another order."""
    tiny.finetune(base, folder, seed, scale=0.1)
    special = len(tiny.SPECIAL)
    order = torch.randperm(len(tiny.ALPHABET), generator=torch.Generator().manual_seed(seed))
    order = torch.cat([torch.arange(special), order + special])
    core = json.loads((folder / "tokenizer.json").read_text())
    core["model"]["vocab"] = {t: int(order[i]) for t, i in core["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(core))
    moved = {}
    for name, tensor in tiny.tensors(folder).items():
        if name in {EMBEDDINGS, HEAD}:
            moved[name] = torch.empty_like(tensor).index_copy_(0, order, tensor)
    return tiny.edit(folder, moved)


def rows(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """A vocabulary tensor by token string."""
    tensor = tiny.tensors(folder)[name]
    tokens = AutoTokenizer.from_pretrained(folder).get_vocab()
    return {token: tensor[row] for token, row in tokens.items() if row < len(tensor)}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("vocabularies")


@pytest.fixture(scope="module", params=["MistralForCausalLM", "Qwen2ForCausalLM"])
def family(scratch, request):
    """A base and its fine-tunes; Qwen2's embeddings are tied. fp32, so that sums can be exact."""
    place = scratch / request.param
    base = architectures.base(request.param, place / "base", dtype=torch.float32)
    return {
        "base": base,
        "two": grown(base, place / "two", 1, ["<|a|>", "<|b|>"]),
        "one": grown(base, place / "one", 2, ["<|b|>"]),
        "permuted": permuted(base, place / "permuted", 3),
        "padded": grown(base, place / "padded", 4, ["<|c|>"], rows=64),
        "plain": tiny.finetune(base, place / "plain", 5, scale=0.1),
    }


def vocabulary_tensors(family) -> list[str]:
    return [n for n in (EMBEDDINGS, HEAD) if n in Checkpoint.open(family["base"]).tensors]


def combined(family, weights: dict[str, float], donor: str) -> Assembly:
    """A combination of base and leaves."""
    leaves = [name for name in weights if name != "base"]
    row = (weights.get("base", 0.0), *(weights[name] for name in leaves))
    table = tuple((name, row) for name in Checkpoint.open(family["base"]).tensors)
    folders = tuple(family[name] for name in leaves)
    return Assembly("x", family["base"], folders, table, family[donor])


# Seen through the base


def test_a_descendant_has_the_bases_tokens_in_the_bases_rows(family):
    base = Checkpoint.open(family["base"])
    tokens = AutoTokenizer.from_pretrained(family["base"]).get_vocab()
    for name in ("two", "one", "permuted", "padded", "plain"):
        leaf = descend(base, family[name])
        for tensor in vocabulary_tensors(family):
            found, own = leaf.content(tensor), rows(family[name], tensor)
            assert found.shape == base.tensors[tensor].shape
            assert all(torch.equal(found[row], own[token]) for token, row in tokens.items())


def test_a_token_that_a_model_lacks_is_the_bases(family):
    base = Checkpoint.open(family["two"])
    expected = rows(family["two"], EMBEDDINGS)["<|a|>"]
    one = descend(base, family["one"])
    found = one.content(EMBEDDINGS)
    assert torch.equal(found[51], expected)
    assert torch.equal(found[52], rows(family["one"], EMBEDDINGS)["<|b|>"])
    ledger = ledgers.of(family["two"], {"one": family["one"]})
    deltas = {n: float(d) for n, d in zip(ledger.names, ledger.gram[:, 2, 2], strict=True)}
    exact = (found.double() - base.tensor(EMBEDDINGS).double()).square().sum()
    assert deltas[EMBEDDINGS] == pytest.approx(float(exact), rel=1e-6)


def test_mixed_dtypes_keep_the_bases_row_exactly(tmp_path, family):
    half = shutil.copytree(family["one"], tmp_path / "half")
    tiny.edit(half, {n: t.bfloat16() for n, t in tiny.tensors(half).items()})
    base = Checkpoint.open(family["two"])
    found = descend(base, half).content(EMBEDDINGS)
    assert torch.equal(found[51], base.tensor(EMBEDDINGS)[51])


def test_other_bytes_with_the_same_tokens_are_the_same(tmp_path, family):
    other = shutil.copytree(family["plain"], tmp_path / "other")
    core = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(core))
    assert (other / "tokenizer.json").read_bytes() != (
        family["plain"] / "tokenizer.json"
    ).read_bytes()
    assert descend(Checkpoint.open(family["base"]), other).vocabulary is None


@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_told_of_outside_the_tokenizer_count(tmp_path, where):
    for folder, extra in (("a", {}), ("b", {"<|x|>": 51})):
        tiny.tokenizer(tmp_path / folder)
        path = tmp_path / folder / where
        value = json.loads(path.read_text()) if path.exists() else {}
        decoder = {str(row): {"content": token} for token, row in extra.items()}
        new = {"added_tokens_decoder": decoder} if where == "tokenizer_config.json" else extra
        path.write_text(json.dumps(value | new))
    one, other = (Vocabulary(tmp_path / folder, 52) for folder in "ab")
    assert not same(one, other)
    assert (one.names[51], other.names[51]) == (None, "<|x|>")


def test_every_kind_of_tokenizer_file_is_read(tmp_path):
    files = {
        "unigram": ("tokenizer.json", '{"model": {"vocab": [["a", 0.0], ["b", -1.5]]}}'),
        "bpe": ("vocab.json", '{"a": 0, "b": 1}'),
        "wordpiece": ("vocab.txt", "a\nb\n"),
    }
    for kind, (name, text) in files.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / name).write_text(text)
        assert Vocabulary(tmp_path / kind, 3).names == ("a", "b", None), kind


@pytest.mark.parametrize(
    "text",
    ["{}", '{"model": {}}', '{"model": {"vocab": [1]}}', '{"model": {"vocab": {"a": "x"}}}', "["],
)
def test_a_broken_tokenizer_is_a_model_error(tmp_path, family, text):
    odd = shutil.copytree(family["two"], tmp_path / "odd")
    (odd / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="odd"):
        descend(Checkpoint.open(family["base"]), odd)


def test_a_token_list_that_is_no_text_is_a_model_error(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"\xff\n")
    with pytest.raises(ModelError, match=r"vocab\.txt: cannot be read"):
        assert Vocabulary(tmp_path, 3).names


def test_an_absurd_id_asks_for_no_memory(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1000000000000}')
    with pytest.raises(ModelError, match="1000000000000, which is no id"):
        assert Vocabulary(tmp_path, 3).names


def test_without_a_tokenizer_equal_sizes_are_equal_and_others_refused(tmp_path, family):
    plain = shutil.copytree(family["plain"], tmp_path / "plain")
    two = shutil.copytree(family["two"], tmp_path / "two")
    for folder in (plain, two):
        (folder / "tokenizer.json").unlink()
    base = Checkpoint.open(family["base"])
    assert torch.equal(descend(base, plain).content(EMBEDDINGS), tiny.tensors(plain)[EMBEDDINGS])
    with pytest.raises(ModelError, match=r"two: its embeddings have 53 rows.* no tokenizer to"):
        descend(base, two)


def test_embeddings_of_another_width_are_refused(tmp_path, family):
    wide = shutil.copytree(family["two"], tmp_path / "wide")
    tiny.edit(wide, {EMBEDDINGS: torch.zeros(53, 64)})
    with pytest.raises(ModelError, match=r"embed_tokens\.weight is 53x64, the base's is 51x32"):
        descend(Checkpoint.open(family["base"]), wide)


# Merges


@pytest.mark.parametrize("donor", ["base", "two", "one", "padded"])
def test_linear_is_mergekits_union_token_by_token(tmp_path, family, donor):
    weights = {donor: 0.4, "base": 0.1, "two": 0.2, "one": 0.25, "permuted": 0.15}
    weights = {donor: weights.pop(donor)} | weights
    models = "".join(
        f"  - model: {family[name]}\n    parameters: {{weight: {weight}}}\n"
        for name, weight in weights.items()
    )
    text = (
        f"merge_method: linear\nbase_model: {family['base']}\nmodels:\n{models}"
        "parameters: {normalize: false}\ndtype: float32\ntokenizer: {source: union}\n"
    )
    theirs = mergekit_oracle.merge(text, tmp_path / "theirs")
    write(combined(family, weights, donor), tmp_path / "ours")
    for name in vocabulary_tensors(family):
        ours, expected = rows(tmp_path / "ours", name), rows(theirs, name)
        assert ours.keys() == expected.keys()
        for token, row in ours.items():
            assert torch.allclose(row, expected[token], rtol=1e-6, atol=1e-6), token
    for name, tensor in tiny.tensors(tmp_path / "ours").items():
        if name not in (EMBEDDINGS, HEAD):
            assert torch.allclose(tensor, tiny.tensors(theirs)[name], rtol=1e-6, atol=1e-6)


def test_slerp_is_near_mergekits_whose_angle_knows_the_added_tokens(tmp_path, family):
    """Ours comes from the base's tokens alone: 2 of 53 rows are missing in it."""
    recipe = Recipe("slerp", ("two", "one"), {"t": 0.3})
    ledger = ledgers.of(family["base"], {name: family[name] for name in ("two", "one")})
    child = combine(ledger, recipe, [leaf(ledger, name) for name in recipe.parents])
    assembly = assemble(ledger, child, family["base"], family, "x", donor=family["two"])
    write(assembly, tmp_path / "ours")
    text = (
        f"merge_method: slerp\nbase_model: {family['two']}\nmodels:\n"
        f"  - model: {family['two']}\n  - model: {family['one']}\n"
        "parameters: {t: 0.3}\ndtype: float32\ntokenizer: {source: union}\n"
    )
    theirs = mergekit_oracle.merge(text, tmp_path / "theirs")
    for name in vocabulary_tensors(family):
        ours, expected = rows(tmp_path / "ours", name), rows(theirs, name)
        assert ours.keys() == expected.keys()
        for token, row in ours.items():
            assert torch.allclose(row, expected[token], rtol=0.05, atol=0.01), token


def test_a_merge_speaks_the_tokens_of_all(tmp_path, family):
    assembly = combined(family, {"plain": 0.5, "two": 0.3, "one": 0.2}, "plain")
    write(assembly, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(tokenizer) == 53
    assert model.get_input_embeddings().weight.shape[0] == 53
    ids = tokenizer(TEXT).input_ids
    assert [tokenizer.convert_ids_to_tokens(i) for i in (ids[0], ids[7])] == ["<|a|>", "<|b|>"]
    # The same combination by hand, in a model of the donor's with two more rows.
    weights = {"plain": 0.5, "two": 0.3, "one": 0.2}
    own = {name: tiny.tensors(family[name]) for name in weights}
    state = {
        name: sum(w * own[leaf][name].double() for leaf, w in weights.items()).float()
        for name in own["plain"]
        if name not in (EMBEDDINGS, HEAD)
    }
    for name in vocabulary_tensors(family):
        by_token = {leaf: rows(family[leaf], name) for leaf in weights}
        a = by_token["two"]["<|a|>"]
        b = {"two": by_token["two"]["<|b|>"], "one": by_token["one"]["<|b|>"]}
        both = 0.5 * (b["two"] + b["one"]) / 2 + 0.3 * b["two"] + 0.2 * b["one"]
        first = sum(w * own[leaf][name][:51] for leaf, w in weights.items())
        state[name] = torch.cat([first, a[None], both[None]])
    expected = AutoModelForCausalLM.from_pretrained(family["two"], dtype=torch.float32)
    expected.load_state_dict(state, strict=False)
    expected.tie_weights()
    tokens = torch.tensor([ids])
    with torch.no_grad():
        live = live_model(assembly, dtype=torch.float32, device="cpu")
        assert torch.allclose(model(tokens).logits, expected(tokens).logits, atol=1e-4)
        assert torch.equal(model(tokens).logits, live(tokens).logits)


def test_added_tokens_keep_their_owners_settings(tmp_path, family):
    write(combined(family, {"plain": 0.5, "two": 0.5}, "plain"), tmp_path / "out")
    own, out = (AutoTokenizer.from_pretrained(f) for f in (family["two"], tmp_path / "out"))
    settings = {token.content: token for token in out.added_tokens_decoder.values()}
    for token in own.added_tokens_decoder.values():
        assert settings[token.content] == token
    assert out.decode(out(TEXT).input_ids, skip_special_tokens=True) == "7+5=12ok"


def test_padding_rows_are_matched_by_their_place(family):
    padded = tiny.tensors(family["padded"])[EMBEDDINGS]
    base = tiny.tensors(family["base"])[EMBEDDINGS]
    sources = combined(family, {"base": 0.25, "padded": 0.75}, "padded").open()
    (found,) = sources.blocks(EMBEDDINGS, torch.float32, torch.device("cpu"))
    found = found.view(-1, 32)
    assert found.shape == padded.shape
    # Nobody else has row 60, nor the token of row 51: both are wholly their owner's.
    assert torch.allclose(found[51:], padded[51:], rtol=1e-6)
    assert torch.allclose(found[:51], 0.25 * base + 0.75 * padded[:51], rtol=1e-6, atol=1e-7)


def test_a_new_token_takes_the_donors_first_free_row(tmp_path, family):
    write(combined(family, {"padded": 0.5, "two": 0.5}, "padded"), tmp_path / "out")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert (tokens["<|c|>"], tokens["<|a|>"], tokens["<|b|>"]) == (51, 52, 53)
    assert tiny.tensors(tmp_path / "out")[EMBEDDINGS].shape[0] == 64
    assert torch.allclose(
        rows(tmp_path / "out", EMBEDDINGS)["<|a|>"], rows(family["two"], EMBEDDINGS)["<|a|>"]
    )


def test_where_the_donor_has_every_token_its_files_are_copied(tmp_path, family):
    write(combined(family, {"two": 0.5, "one": 0.25, "permuted": 0.25}, "two"), tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (family["two"] / name).read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == 53


def test_a_leaf_with_tokens_of_its_own_is_handed_on_unchanged(tmp_path, family):
    for name in ("two", "permuted", "padded"):
        write(leaf_assembly(family[name], name), tmp_path / name)
        write(combined(family, {name: 1.0}, name), tmp_path / f"{name}2")
        before = tiny.tensors(family[name])
        for out in (name, f"{name}2"):
            after = tiny.tensors(tmp_path / out)
            assert all(torch.equal(before[n], after[n]) for n in before | after)


def test_the_same_union_has_the_same_bytes(tmp_path, family):
    assembly = combined(family, {"plain": 0.5, "two": 0.3, "permuted": 0.2}, "plain")
    assert write(assembly, tmp_path / "one") == write(assembly, tmp_path / "two")


def test_a_token_without_a_row_is_nobodys(tmp_path, family):
    careless = shutil.copytree(family["plain"], tmp_path / "careless")
    tokenizer = AutoTokenizer.from_pretrained(careless)
    tokenizer.add_tokens(["<|a|>"])
    tokenizer.save_pretrained(careless)
    members = family | {"careless": careless}
    # As a leaf it adds nothing; as the donor its token comes to a row with the first that has one.
    write(combined(members, {"plain": 0.5, "careless": 0.5}, "plain"), tmp_path / "leaf")
    assert tiny.tensors(tmp_path / "leaf")[EMBEDDINGS].shape[0] == 51
    write(combined(members, {"two": 0.5, "careless": 0.5}, "careless"), tmp_path / "donor")
    for token in ("<|a|>", "<|b|>"):
        found = rows(tmp_path / "donor", EMBEDDINGS)[token]
        assert torch.allclose(found, rows(family["two"], EMBEDDINGS)[token], rtol=1e-6)


def rowless(folder: Path, target: Path, token: str, number: int) -> Path:
    """A copy whose tokenizer has a token more, of this id and without a row."""
    shutil.copytree(folder, target)
    core = json.loads((target / "tokenizer.json").read_text())
    core["added_tokens"].append({**core["added_tokens"][0], "id": number, "content": token})
    (target / "tokenizer.json").write_text(json.dumps(core))
    return target


def test_a_donors_token_without_a_row_keeps_its_id(tmp_path, family):
    own = rowless(family["plain"], tmp_path / "own", "<|mine|>", tiny.VOCABULARY)
    write(combined(family | {"own": own}, {"two": 0.5, "own": 0.5}, "own"), tmp_path / "out")
    found = rows(tmp_path / "out", EMBEDDINGS)
    assert not bool(found["<|mine|>"].any())
    for token in ("<|a|>", "<|b|>"):
        assert torch.allclose(found[token], rows(family["two"], EMBEDDINGS)[token], rtol=1e-6)


def test_an_adapters_names_for_the_bases_rows_move_none(tmp_path, family):
    renamed = tmp_path / "adapter"
    renamed.mkdir()
    for path in family["plain"].glob("tokenizer*"):
        shutil.copy(path, renamed)
    core = (renamed / "tokenizer.json").read_text()
    (renamed / "tokenizer.json").write_text(core.replace("<pad>", "<|user|>"))
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (renamed / "adapter_config.json").write_text(json.dumps(settings))
    name = "model.layers.0.mlp.up_proj"
    outputs, inputs = tiny.tensors(family["base"])[f"{name}.weight"].shape
    factors = {"A": torch.ones(2, inputs), "B": torch.ones(outputs, 2)}
    save_file(
        {f"base_model.model.{name}.lora_{side}.weight": t for side, t in factors.items()},
        renamed / "adapter_model.safetensors",
    )
    opened = leaf_assembly(renamed, "x", family["base"]).open()
    assert (opened.union, opened.rows) == (None, tiny.VOCABULARY)


@pytest.mark.parametrize("donor", ["far", "two"])
def test_ids_far_beyond_a_donors_rows_ask_for_no_rows(tmp_path, family, donor):
    far = rowless(family["one"], tmp_path / "far", "<|far|>", 9_000_000)
    members = combined(family | {"far": far}, {"two": 0.5, "far": 0.5}, donor)
    if donor == "two":
        assert members.open().rows < 100
        return
    with pytest.raises(ModelError, match=r"far: its tokenizer has ids up to 9000000, its embed"):
        members.open()


def test_union_is_none_where_all_agree(family):
    names = ("base", "plain")
    known = [Vocabulary.of(Checkpoint.open(family[name])) for name in names]
    assert unite(known[1], known) is None


def test_what_is_evaluated_is_what_would_be_published(tmp_path, family):
    asked = Evaluate(selection=["a"], validation=["b"], device="cpu", dtype="float32", batch_size=4)
    stage = ModelSlot(Settings.of(asked, 0), LiveModel.of)
    first = combined(family, {"plain": 0.5, "two": 0.5}, "plain")
    second = combined(family, {"plain": 0.1, "two": 0.9}, "plain")
    models = []
    for assembly in (first, second):
        live = stage.load(assembly)
        models.append(live.model)
        out = tmp_path / str(len(models))
        write(assembly, out)
        tokens = AutoTokenizer.from_pretrained(out)(TEXT, return_tensors="pt").input_ids
        assert torch.equal(live.tokenizer(TEXT, return_tensors="pt").input_ids, tokens)
        published = AutoModelForCausalLM.from_pretrained(out)
        with torch.no_grad():
            assert torch.equal(live.model(tokens).logits, published(tokens).logits)
    assert models[0] is models[1]
    plain = stage.load(leaf_assembly(family["plain"], "plain"))
    assert plain.model.config.vocab_size == len(plain.tokenizer) == tiny.VOCABULARY
