"""Who was set aside and may be tried again: at the next start, or where a setting changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from kinship_daemon.config import Config
from kinship_daemon.evaluate.settings import Settings
from kinship_daemon.report import Reporter, count
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model, Split
from kinship_storage.transitions import ModelEvent

__all__ = ["SETTINGS_THEN", "reopen", "try_again"]

SETTINGS_THEN = "settings_then"

# They keep no model back, and may hold passwords and tokens.
_LEFT_OUT = frozenset({"notify", "web"})


def try_again(config: Config, settings: Settings, lineage: Lineage, report: Reporter) -> None:
    """At a start: whom the world kept out, and whom a setting did that has another value now."""
    now = _settings(config, settings)
    then = lineage.get(SETTINGS_THEN) or _of_an_older_version(lineage)
    changed = {key for key, value in now.items() if then.get(key, value) != value}
    with lineage.transaction():
        waiting = [model for model in lineage.set_aside("world") if model.retry_at is not None]
        by_setting = [
            model
            for model in lineage.set_aside("settings")
            if _is_changed(model.setting, changed) and _is_newest(lineage, model)
        ]
        for model in (*waiting, *by_setting):
            reopen(lineage, model)
        lineage.put(SETTINGS_THEN, now)
    rules = [key for key in sorted(changed) if key.startswith("gate.") or key == "publish.require"]
    if rules and lineage.gates(settings.fingerprint("validation")):
        words = f"{', '.join(rules)} changed: it counts for merges that are judged from now on"
        report.event("warning", f"{words}; those given before stand")
    if waiting:
        report.event("retry", f"{_models(waiting)} tried again, set aside for a time")
    if by_setting:
        keys = ", ".join(sorted({str(model.setting) for model in by_setting}))
        report.event("retry", f"{_models(by_setting)} tried again: {keys} changed")


def reopen(lineage: Lineage, model: Model) -> None:
    """What was set aside is looked at afresh: a candidate from the start, a merge is made again."""
    event: ModelEvent = "repropose" if model.kind == "merge" else "reopen"
    with lineage.transaction():
        lineage.move_model(model.id, event)
        lineage.retry_jobs(model.id)
        if model.kind != "merge" and lineage.candidate(model.id) is not None:
            lineage.update_candidate(model.id, triaged=False)


def _settings(config: Config, settings: Settings) -> dict[str, Any]:
    """Values by key that may keep a model back, and under `evaluate` all that scores depend on."""
    sections = config.model_dump(mode="json")
    values = {
        f"{section}.{key}": value
        for section, content in sections.items()
        if isinstance(content, Mapping) and section not in _LEFT_OUT
        for key, value in content.items()
    }
    return {**values, "evaluate": [settings.fingerprint(split) for split in get_args(Split)]}


def _is_changed(setting: str | None, changed: set[str]) -> bool:
    """Whatever depends on the evaluation may come out otherwise when any of it changes."""
    evaluation = (setting or "").startswith("evaluate") and "evaluate" in changed
    return setting in changed or evaluation


def _of_an_older_version(lineage: Lineage) -> dict[str, Any]:
    """The triage rules and fingerprints that homes kept before all settings were."""
    rules = {f"triage.{key}": value for key, value in (lineage.get("triage") or {}).items()}
    prints = lineage.get("settings")
    return rules if not prints else {**rules, "evaluate": [prints[s] for s in get_args(Split)]}


def _is_newest(lineage: Lineage, model: Model) -> bool:
    """Whether no later revision of its repo was noticed; a merge has none."""
    candidate = lineage.candidate(model.id)
    if candidate is None or model.repo is None:
        return True
    others = (lineage.candidate(each.id) for each in lineage.of_repo(model.repo))
    return all(other is None or other.modified <= candidate.modified for other in others)


def _models(models: list[Model]) -> str:
    return f"{count(len(models), 'model')} {'is' if len(models) == 1 else 'are'}"
