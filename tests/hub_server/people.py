"""Tokens, whose they are, and what they may do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TOKEN = "hf_tokenoftests"
_WRITING_ROLES = {"admin", "write", "contributor"}


@dataclass(frozen=True)
class Token:
    """Role: read, write or fineGrained; the last may do what `scopes` says of each namespace."""

    user: str = "tester"
    role: str = "write"
    orgs: Mapping[str, str] = field(default_factory=dict)  # name to roleInOrg
    scopes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def sees(self, namespace: str) -> bool:
        return namespace == self.user or namespace in self.orgs

    def writes(self, namespace: str) -> bool:
        ours = namespace == self.user or self.orgs.get(namespace) in _WRITING_ROLES
        if self.role == "fineGrained":
            return ours and "repo.write" in self.scopes.get(namespace, ())
        return ours and self.role == "write"

    def whoami(self) -> dict:
        access: dict = {"displayName": "tests", "role": self.role}
        if self.role == "fineGrained":
            access["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": []}
            for name, permissions in self.scopes.items():
                kind = "user" if name == self.user else "org"
                entry = {"entity": {"type": kind, "name": name}, "permissions": list(permissions)}
                access["fineGrained"]["scoped"].append(entry)
        return {
            "type": "user",
            "id": "0" * 24,
            "name": self.user,
            "fullname": "",
            "email": None,
            "isPro": False,
            "orgs": [
                {"type": "org", "name": name, "fullname": name, "roleInOrg": role}
                for name, role in self.orgs.items()
            ],
            "auth": {"type": "access_token", "accessToken": access},
        }
