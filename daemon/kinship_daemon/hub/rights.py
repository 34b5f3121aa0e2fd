"""What a token may do, from the hub's own words about it."""

from __future__ import annotations

from typing import Any

from kinship_daemon.errors import UsageError
from kinship_daemon.foreign.shown import shown

__all__ = ["writing_right"]

_WRITERS = {"admin", "write", "contributor"}


def writing_right(whoami: object, namespace: str) -> str:
    """
    As whom a token may publish under a namespace.

    Where the hub does not tell a token's role or a member's, it is not held against it: the
    first publication will show.

    Args:
        whoami: The JSON of `GET /api/whoami-v2`.

    Raises:
        UsageError: it may not; says what would work.
    """
    answer = _mapping(whoami)
    user, role = shown(str(answer.get("name"))), _token_role(answer)
    if not _same(namespace, user):
        _check_member(answer, user, namespace)
    if role == "read":
        raise UsageError(f"{user}'s token may only read; make one of role write, and set HF_TOKEN")
    if role == "fineGrained" and "repo.write" not in _permissions(answer, namespace):
        raise UsageError(
            f"{user}'s fine-grained token has no repo.write for {namespace}; "
            f"add write access to the repos of {namespace} to it"
        )
    who = user if _same(namespace, user) else f"{user}, a member of {namespace}"
    return f"under {namespace}/ as {who}" + ("" if role else " (the hub tells no role)")


def _check_member(answer: dict[str, Any], user: str, namespace: str) -> None:
    orgs = [_mapping(org) for org in _sequence(answer.get("orgs"))]
    ours = next((org for org in orgs if _same(namespace, org.get("name"))), None)
    if ours is None:
        names = shown(", ".join(str(org.get("name")) for org in orgs))
        raise UsageError(
            f"{namespace} is neither {user} nor an organisation of theirs"
            + (f" ({names})" if names else "")
            + "; set publish.namespace to one that is, or use a token of a member"
        )
    role = ours.get("roleInOrg")
    if role is not None and role not in _WRITERS:
        raise UsageError(
            f"{user} has the role {shown(role)} in {namespace}, which may not write; "
            f"one of {', '.join(sorted(_WRITERS))} is needed"
        )


def _token_role(answer: dict[str, Any]) -> str | None:
    role = _mapping(_mapping(answer.get("auth")).get("accessToken")).get("role")
    return role if isinstance(role, str) else None


def _permissions(answer: dict[str, Any], namespace: str) -> set[str]:
    """What a fine-grained token may do with everything below a user or an organisation."""
    access = _mapping(_mapping(answer.get("auth")).get("accessToken"))
    found: set[str] = set()
    for scope in map(_mapping, _sequence(_mapping(access.get("fineGrained")).get("scoped"))):
        entity = _mapping(scope.get("entity"))
        if entity.get("type") in {"user", "org"} and _same(namespace, entity.get("name")):
            found.update(map(str, _sequence(scope.get("permissions"))))
    return found


def _same(namespace: str, name: object) -> bool:
    return isinstance(name, str) and name.casefold() == namespace.casefold()


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
