"""Requests per window, as the Hub counts them: every caller has a count for each kind."""

from dataclasses import dataclass, field


@dataclass
class Quota:
    """Fixed windows that begin with a caller's first request."""

    limits: dict[str, int]  # "api" and "resolvers"
    seconds: float = 300.0
    _used: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)

    def take(self, path: str, caller: str, now: float) -> tuple[dict[str, str], bool]:
        """The headers of the answer, and whether this request is one too many."""
        kind = kind_of(path)
        if kind not in self.limits:
            return {}, False
        begin, used = self._used.get((kind, caller), (now, 0))
        if now >= begin + self.seconds:
            begin, used = now, 0
        self._used[kind, caller] = (begin, used + 1)
        limit = self.limits[kind]
        rest = max(limit - used - 1, 0)
        left = max(int(begin + self.seconds - now + 0.999), 1)
        headers = {
            "RateLimit": f'"{kind}";r={rest};t={left}',
            "RateLimit-Policy": f'"fixed window";"{kind}";q={limit};w={self.seconds:g}',
        }
        return headers, used >= limit


def kind_of(path: str) -> str:
    if path.startswith("/api/"):
        return "api"
    return "resolvers" if "/resolve/" in path or "/raw/" in path else "pages"
