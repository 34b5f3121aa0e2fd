"""Fields of JSON, as the pages of the documentation list them and as they are."""

import re

ROW = re.compile(r"^\| `([^`]+)` \|", re.M)


def tables(text):
    """Fields by the heading of their table's first column."""
    found = {}
    for head, rows in re.findall(
        r"^\| (field[^|]*) \| meaning \|\n\| --- \| --- \|\n((?:\|.*\n)*)", text, re.M
    ):
        found.setdefault(head, []).extend(ROW.findall(rows))
    return found


def leaves(value, known, at=""):
    """Paths of fields that hold no fields, `*` for names where the page has it; nulls too."""
    if isinstance(value, list) and any(name.startswith(f"{at}[].") for name in known):
        return set().union(*(leaves(item, known, f"{at}[]") for item in value))
    if not isinstance(value, dict) or (at in known and not value):
        return {at}
    free = any(name == f"{at}.*" or name.startswith(f"{at}.*.") for name in known)
    found = {at} if at in known else set()
    for name, item in value.items():
        found |= leaves(item, known, ".".join(filter(None, [at, "*" if free else name])))
    return found
