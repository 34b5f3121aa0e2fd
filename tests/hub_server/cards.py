"""Model cards: their front matter, what the Hub reads out of it, and what it rejects."""

import re
from collections.abc import Iterator, Mapping

import yaml

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_MOST_ALIASES = 50  # a few lines of them, each of the one before, are more than any memory
_MODEL_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
# As the Hub's documentation of model cards lists them.
_LICENCES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
    ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
    lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
    odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl
    lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1
    llama3.2 llama3.3 llama4 grok2-community gemma unknown other
"""
LICENCES = frozenset(_LICENCES.split())


def dumped(card: Mapping[str, object], title: str) -> bytes:
    return f"---\n{yaml.dump(dict(card), Dumper=_Dumper)}---\n# {title}\n".encode()


def block(text: str) -> str | None:
    """The YAML between the two lines of dashes."""
    found = re.match(r"---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(\r?\n|$)", text, re.DOTALL)
    return found[1] if found else None


def front_matter(readme: bytes) -> dict | None:
    """Of a card as it was stored; None where the Hub could not read it either."""
    try:
        text = block(readme.decode())
        card = _loaded(text) if text else None
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    return card if isinstance(card, dict) else None


def _loaded(text: str) -> object:
    if len(re.findall(r"[\s,\[]\*\w", text)) > _MOST_ALIASES:
        raise yaml.YAMLError("more aliases than anyone needs")
    try:
        return yaml.load(text, _Loader)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # What PyYAML's constructors choke on, such as !!int ''.
        raise yaml.YAMLError(repr(error)) from None


def as_names(value: object) -> list[str]:
    """A field that may be a name, a list of names, or nonsense."""
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [name for name in values if isinstance(name, str)]


def card_tags(card: Mapping) -> list[str]:
    """A card's own tags, and those that the Hub makes of its other fields."""
    bases, relation = as_names(card.get("base_model")), card.get("base_model_relation")
    plain = (card.get("library_name"), card.get("pipeline_tag"))
    made = [
        *(word for word in plain if isinstance(word, str)),
        *(f"base_model:{base}" for base in bases),
        *(f"base_model:{relation}:{base}" for base in bases if relation),
        *(f"license:{name}" for name in as_names(card.get("license"))),
    ]
    return list(dict.fromkeys([*as_names(card.get("tags")), *made]))


def complaints(readme: str) -> list[str]:
    """What the Hub refuses a card for."""
    text = block(readme)
    if text is None:
        # Dashes without an end, or none at all: the Hub takes the latter.
        return ["YAML front matter is not closed"] if readme.startswith("---") else []
    try:
        card = _loaded(text)
    except yaml.YAMLError as error:
        return [str(error)]
    if card is None:
        return []
    return list(_complaints(card)) if isinstance(card, dict) else ["metadata should be an object"]


def _complaints(card: Mapping) -> Iterator[str]:
    licence = card.get("license")
    for name in licence if isinstance(licence, list) else [licence]:
        if name is not None and name not in LICENCES:
            yield f'"license" must be one of [{", ".join(sorted(LICENCES))}], not {name!r}'
    bases = card.get("base_model")
    for base in bases if isinstance(bases, list) else [bases]:
        if base is not None and not (isinstance(base, str) and _MODEL_ID.fullmatch(base)):
            yield f'"base_model" with value {base!r} is not valid. Use a model id.'
    for key in ("tags", "datasets"):
        value = card.get(key)
        if value is not None and len(as_names(value)) != len(value if value != "" else [""]):
            yield f'"{key}" must be an array of strings'
    relations = {None, "finetune", "adapter", "merge", "quantized"}
    relation = card.get("base_model_relation")
    if not isinstance(relation, str | None) or relation not in relations:
        yield f'"base_model_relation" cannot be {relation!r}'
    if "model-index" in card:
        yield from _index_complaints(card["model-index"])


def _index_complaints(index: object) -> Iterator[str]:
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index):
        where = f"model-index[{i}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            yield f'"{where}.name" is required'
        elif not isinstance(model.get("results"), list):
            yield f'"{where}.results" must be an array'
        else:
            for j, result in enumerate(model["results"]):
                yield from _result_complaints(result, f"{where}.results[{j}]")


def _result_complaints(result: object, where: str) -> Iterator[str]:
    needed = {"task": ("type",), "dataset": ("name", "type")}
    for part, keys in needed.items():
        held = result.get(part) if isinstance(result, dict) else None
        for key in keys:
            if not isinstance(held, dict) or not isinstance(held.get(key), str):
                yield f'"{where}.{part}.{key}" is required'
    metrics = result.get("metrics") if isinstance(result, dict) else None
    if not isinstance(metrics, list) or not metrics:
        yield f'"{where}.metrics" is required'
        return
    for k, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str):
            yield f'"{where}.metrics[{k}].type" is required'
        elif metric.get("value") is None:
            yield f'"{where}.metrics[{k}].value" is required'
