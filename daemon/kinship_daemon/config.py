"""The configuration: one YAML file, checked before anything happens; every key has a default."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from kinship_daemon import demo
from kinship_daemon.config_mistakes import explained
from kinship_daemon.errors import UsageError
from kinship_daemon.evaluate.settings import PAPER_TASKS, Evaluate, Section, UserPath
from kinship_daemon.foreign.limits import Limits as TextLimits
from kinship_daemon.foreign.limits import Malformed
from kinship_daemon.foreign.yaml_text import parse_yaml
from kinship_daemon.notify.settings import Notify
from kinship_policies.registry import choice

__all__ = ["Config", "examine", "load", "reference", "schema", "to_yaml"]

_LONGEST = TextLimits(nbytes=1_000_000, items=50_000)


class Watch(Section):
    poll_minutes: float = Field(30.0, gt=0, le=525_600)
    """Minutes between two looks at the hub."""
    overlap_minutes: float = Field(60.0, ge=0, le=525_600)
    """A look goes back this far before the newest change seen: a hub's listing may lag."""
    relist_hours: float = Field(24.0, gt=0, le=8_760)
    """Hours between two listings of everyone: who was tagged late, and who is gone."""
    connections: int = Field(8, ge=1, le=64)
    """Connections to the hub at a time, at most; so many candidates are looked into at once."""
    webhook_port: int | None = Field(None, ge=0, le=65535)
    """Listen here for the Hub's webhooks, which hurry the next look; KINSHIP_WEBHOOK_SECRET."""
    webhook_host: str = "127.0.0.1"
    """Address to listen at."""


class Triage(Section):
    max_gb: float = Field(40.0, gt=0)
    """Refuse repos whose weights are larger, in gigabytes (10^9 bytes)."""
    allow_gated: bool = False
    """Admit gated repos; publishing their descendants needs publish.allow_gated too."""
    allow_merges: bool = False
    """Admit other people's merges; their own parents are rarely all declared."""
    allow_adapters: bool = True
    """Admit LoRA adapters: their weight changes count as those of a fine-tune."""
    allow_other_calculation: bool = False
    """Admit fine-tunes with another activation or rope than the base; merges have the base's."""
    exclude: tuple[str, ...] = ()
    """Refuse repos whose id matches one of these, such as `org/*`; `exclude` adds some, too."""
    only_publishable: bool = False
    """Refuse candidates whose licence would keep every merge of them from being published."""
    sample: float = Field(0.002, ge=0, le=0.5)
    """Part of a candidate's weights that is read to estimate its kinship; 0 reads none."""
    ancestry: Literal["mark", "refuse", "ignore"] = "mark"
    """Who, by that sample, is no descendant of the base or a merge of others: marked or refused."""


class Admission(Section):
    novelty: float = Field(1.0, ge=0)
    """Weight of a candidate's distance: 1 minus its highest kinship to the admitted."""
    popularity: float = Field(0.5, ge=0)
    """Weight of its downloads and likes, beside those of the others who wait."""
    screen_documents: int = Field(0, ge=0)
    """Documents per task of a quick screen before a full evaluation; 0 screens nobody."""
    screen_margin: float = Field(0.05, ge=0)
    """Refuse whom the quick screen finds worse than the base by more than this."""


class Kinship(Section):
    metric: Literal["pcc", "cosine"] = "pcc"
    """What the policy sees. Euclidean distance is recorded too, but near is low there."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where inner products are computed."""


class PolicyChoice(BaseModel):
    """`use` names the policy; every other key is one of that policy's own settings."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    use: str = "topk-kinship"
    """An installed policy, or `package.module:Class`. `kinship-daemon policies` lists them."""

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class Merge(Section):
    method: str = "slerp"
    """A merge method of `kinship_daemon.methods`."""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"t": 0.5})
    """The method's parameters, in mergekit's forms; for a method other than slerp, none."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_method(cls, given: Any) -> Any:
        """Slerp's t is no other method's."""
        other = isinstance(given, dict) and given.get("method", "slerp") != "slerp"
        return {"parameters": {}} | given if other else given


class Executor(Section):
    use: str = "local"
    """An executor of `kinship_daemon.executors`: who evaluates models and measures kinship."""
    address: str = "auto"
    """For `ray`: `auto` (the cluster of this machine), HOST:PORT, ray://HOST:PORT, or `local`."""
    workers: int | None = Field(None, ge=1)
    """How many Ray workers, also where the cluster must grow for them; by default all that fit."""
    gpus_per_worker: float | None = Field(None, ge=0)
    """GPUs that a Ray worker takes, also fractions; by default 1 on CUDA and 0 on the CPU."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Further Ray resources that a worker takes, by name; also CPU (1), and memory in bytes."""
    shared_folder: UserPath | None = None
    """A folder that the daemon may write and all nodes see: other machines read models there."""
    node_cache: str = "~/.cache/kinship-daemon"
    """Where a node keeps its copies of models, and its workers' logs."""
    node_disk_gb: float = Field(100.0, gt=0)
    """What a node's copies may take, in gigabytes; what is not in use makes room."""


class Gate(Section):
    fdr: float = Field(0.10, gt=0, lt=1)
    """Of all that the home ever publishes, at most this share is expected to be luck."""
    strict: bool = False
    """Judge by e-values: that share is then proven, not simulated, and fewer merges pass."""
    futility: bool = True
    """Ask no more about a merge that could hardly pass: a third of the documents is left."""
    min_gain: float = Field(0.0, ge=-1, le=1)
    """The gain over every parent must be surely above this."""
    resamples: int = Field(9999, ge=999)
    """Bootstrap resamples of the interval that is reported beside the verdict."""


class Publish(Section):
    namespace: str | None = None
    """User or organisation to publish under. Nothing is published unless this is set."""
    name: str = "{base}-{model}-{hash}"
    """Repo name. {base}, {model} and {hash} (of the recipe) are filled in."""

    @field_validator("name")
    @classmethod
    def _can_be_filled_in(cls, name: str) -> str:
        try:
            one, other = (name.format(base="b", model=m, hash=m) for m in ("m", "n"))
        except (KeyError, IndexError, ValueError):
            raise ValueError("can hold {base}, {model} and {hash} only") from None
        if one == other:
            raise ValueError("needs {model} or {hash}, or all merges would have one name")
        return name

    require: Literal["best", "parents"] = "best"
    """Whom a merge must beat: its parents and the best merge published before, or its parents."""
    public: bool = False
    """Published repos are private unless this is set."""
    allow_licenses: tuple[str, ...] = ()
    """Licences to accept although they are unknown or non-commercial ("unknown" for none)."""
    allow_gated: bool = False
    """Publish although an ancestor is gated."""


class Limits(Section):
    disk_gb: float = Field(200.0, gt=0)
    """What the home may hold, in gigabytes (10^9 bytes); fine-tunes make room for new ones."""
    candidates_per_day: int = Field(1000, ge=1)
    """Candidates looked into per UTC day: their files, headers and sample."""
    download_gb_per_day: float = Field(1000.0, gt=0)
    """Gigabytes of fine-tunes fetched per UTC day."""
    eval_hours_per_day: float = Field(24.0, gt=0)
    """Hours of evaluation per UTC day."""
    merges_per_day: int = Field(100, ge=1)
    """Merges made per UTC day."""
    merges_total: int | None = Field(None, ge=1)
    """Merges made in all; policies are told how many are left. None for no limit."""
    decision_seconds: float = Field(60.0, gt=0)
    """A policy that takes longer over one decision is stopped; the daemon watches on."""


_LEAST_CHARACTERS = 6


class Web(Section):
    port: int | None = Field(None, ge=0, le=65535)
    """Show the dashboard here while the daemon runs; None for not."""
    host: str = "127.0.0.1"
    """Address to listen at. Beyond this machine it has no password unless `web.token` is set."""
    token: SecretStr | None = None
    """Asked for as the password, under any name, or as a bearer token."""

    @field_validator("token")
    @classmethod
    def _is_a_secret(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and len(set(token.get_secret_value())) < _LEAST_CHARACTERS:
            # Neither what `config show` prints in its place.
            raise ValueError(f"needs {_LEAST_CHARACTERS} different characters or more")
        return token


class Config(Section):
    base: str = "mistral-7b"
    """An alias (`kinship-daemon bases`), org/name[@revision], a local folder, or `demo`."""
    hub: str = "https://huggingface.co"
    """Where models come from and go to: a URL, or a folder of org/name/ repos."""
    home: UserPath | None = None
    """The daemon's own folder; by default one per base under the user's state directory."""
    seed: int = Field(0, ge=0)
    """Seeds the document split, the harness, the bootstrap and policies that draw."""
    watch: Watch = Watch()
    triage: Triage = Triage()
    admission: Admission = Admission()
    kinship: Kinship = Kinship()
    policy: PolicyChoice = PolicyChoice()
    merge: Merge = Merge()
    evaluate: Evaluate = Evaluate()
    executor: Executor = Executor()
    gate: Gate = Gate()
    publish: Publish = Publish()
    limits: Limits = Limits()
    notify: Notify = Notify()
    web: Web = Web()


def reference() -> str:
    """Every key with its default and meaning, as Markdown tables."""
    rows = list(_reference(Config, Config(), ""))
    return "\n".join(["| key | default | meaning |", "| --- | --- | --- |", *rows])


def _reference(section: type[BaseModel], values: BaseModel, prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        value = getattr(values, name)
        if isinstance(value, BaseModel):
            yield from _reference(type(value), value, f"{prefix}{name}.")
            continue
        dumped = values.model_dump(mode="json", exclude_defaults=False)[name]
        shown = "the paper's three" if value is PAPER_TASKS else json.dumps(dumped)
        yield f"| `{prefix}{name}` | `{shown}` | {field.description or ''} |"


def load(
    path: Path | None = None,
    *,
    base: str | None = None,
    hub: str | None = None,
    home: Path | None = None,
    policy: str | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """
    The effective configuration: defaults, then the file, then the flags, then `--set`.

    Args:
        path: A YAML file.
        policy: As `registry.choice` takes it; it replaces the whole policy section.
        overrides: `section.key=value`, the value in YAML.

    Raises:
        UsageError: naming the file, the key and what would work.
    """
    where, given = str(path or "config"), _read(path) if path else {}
    if policy is not None:
        chosen = choice(policy)
        given["policy"] = {"use": chosen.name, **chosen.settings}
    flags = {"base": base, "hub": hub, "home": None if home is None else str(home)}
    given.update({key: value for key, value in flags.items() if value is not None})
    for override in overrides:
        _override(given, override)
    config, mistakes = _validated(given)
    if mistakes:
        more = f" (and {len(mistakes) - 1} more; `config check` tells all)"
        raise UsageError(f"{where}: {mistakes[0]}{more if len(mistakes) > 1 else ''}")
    return config


def examine(path: Path) -> tuple[Config, list[str]]:
    """
    What a file says, with the defaults for sections that have mistakes; a line for each mistake.

    Raises:
        UsageError: It cannot be read, or is no YAML mapping.
    """
    return _validated(_read(path))


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    return Config.model_json_schema()


def _validated(given: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """The configuration without what is wrong in it, and a line for each mistake."""
    known = Config.model_fields
    # `gate:` with nothing behind it is YAML's null: a section that sets nothing.
    given = {
        key: value
        for key, value in given.items()
        if value is not None or key not in known or not isinstance(known[key].default, BaseModel)
    }
    if given.get("base") == "demo":
        given = _merged(demo.defaults(), given)
    try:
        return Config.model_validate(given), []
    except ValidationError as error:
        wrong = {problem["loc"][0] for problem in error.errors()}
        config = Config.model_validate({k: v for k, v in given.items() if k not in wrong})
        return config, [explained(problem, Config) for problem in error.errors()]


def _read(path: Path) -> dict[str, Any]:
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"), _LONGEST, strict=True)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UsageError(f"cannot read config {path}: {reason}") from None
    except Malformed as error:
        raise UsageError(f"cannot read config {path}: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected a mapping such as 'base: mistral-7b'")
    return _beside(data, path.absolute().parent)


def _beside(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """With the paths that it names relative to the file's folder, from wherever it is read."""

    def placed(text: Any) -> Any:
        return text if not isinstance(text, str) or text.startswith("~") else str(folder / text)

    result = dict(given)
    if "home" in given:
        result["home"] = placed(given["home"])
    hub, base, evaluate = (given.get(key) for key in ("hub", "base", "evaluate"))
    if isinstance(hub, str) and hub != "demo" and "://" not in hub:
        result["hub"] = placed(hub)
    if isinstance(base, str) and base.startswith(("./", "../")):
        result["base"] = placed(base)
    if isinstance(evaluate, Mapping) and isinstance(evaluate.get("include_path"), list):
        paths = [placed(path) for path in evaluate["include_path"]]
        result["evaluate"] = {**evaluate, "include_path": paths}
    return result


def _override(given: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {override}: expected key=value, such as --set policy.k=5")
    *sections, last = key.split(".")
    target = given
    for section in sections:
        inner = target.get(section) or {}
        if not isinstance(inner, Mapping):
            raise UsageError(f"--set {key}: {section} is no section, it has no keys")
        target[section] = dict(inner)
        target = target[section]
    try:
        target[last] = parse_yaml(text, _LONGEST, strict=True)
    except Malformed as error:
        raise UsageError(f"--set {key}: the value cannot be read: {error}") from None


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Section by section, `over` wins."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return result
