import re

import pytest

from kinship_daemon.hub.licence import declared, hub_fields, most_restrictive, normalise


def outcome(*licences, allow=()):
    terms = most_restrictive({f"org/m{i}": name for i, name in enumerate(licences)}, allow)
    assert (terms.licence is None) == (terms.blocked is not None)
    return terms.licence or terms.blocked


@pytest.mark.parametrize(
    ("licences", "result"),
    [
        (["apache-2.0", "mit"], "apache-2.0"),
        (["mit", "cc-by-4.0", "apache-2.0"], "cc-by-4.0"),
        (["apache-2.0", "llama3.1", "mit"], "llama3.1"),
        (["Apache 2.0", "apache-2.0"], "apache-2.0"),
        (["gemma", "gemma"], "gemma"),
    ],
)
def test_the_most_restrictive_licence_is_the_childs(licences, result):
    assert outcome(*licences) == result
    assert outcome(*reversed(licences)) == result


@pytest.mark.parametrize(
    ("licences", "said"),
    [
        (["mit", "cc-by-nc-4.0"], r"org/m1 is non-commercial \(cc-by-nc-4.0\)"),
        (["cc-by-nc-sa-3.5", "mit"], "org/m0 is non-commercial"),
        (["mit", "cc-by-nc-nd-4.0"], "org/m1 allows no derivatives"),
        (["mit", None], r"the licence of org/m1 is not known \(unknown\)"),
        (["mit", "other"], "the licence of org/m1 is not known"),
        (["mit", "my-own-terms"], r"org/m1 is not known \(my-own-terms\)"),
        (["gemma", "llama3.1"], r"gemma \(org/m0\) and llama3.1 \(org/m1\) both bind"),
        (["gpl-3.0", "cc-by-nc-4.0", None], "org/m2 is not known"),
    ],
)
def test_what_blocks_is_named_with_the_way_out(licences, said):
    result = outcome(*licences)
    assert re.search(said, result)
    assert result.endswith("publish.allow_licenses can allow it by name")


def test_what_is_allowed_by_name_does_not_block_and_still_restricts():
    assert outcome("mit", "cc-by-nc-4.0", allow=["CC-BY-NC-4.0"]) == "cc-by-nc-4.0"
    assert outcome("mit", None, allow=["unknown"]) == "unknown"
    assert outcome("mit", "my-own-terms", allow=["my-own-terms"]) == "my-own-terms"
    assert outcome("gemma", "llama3.1", allow=["gemma"]) == "llama3.1"
    assert "org/m1" in outcome("mit", "cc-by-nc-4.0", allow=["unknown"])


def test_spellings_are_one_licence():
    assert normalise(" Apache License_2.0 ") == normalise("apache2") == "apache-2.0"
    assert normalise("Other") is normalise(None) is normalise("") is None


def test_a_card_declares_its_licence():
    assert declared({"license": "MIT"}) == "mit"
    assert declared({"license": ["mit"]}) == "mit"
    assert declared({"license": "other", "license_name": "qwen-research"}) == "qwen-research"
    assert declared({"license": "other"}) is None
    assert declared({"license": ["mit", "gemma"]}) is None
    assert declared({"license": False}) is None
    assert declared({}) is None


def test_a_licence_the_hub_does_not_list_is_declared_as_other():
    assert hub_fields("llama3.1") == {"license": "llama3.1"}
    assert hub_fields("qwen-research") == {"license": "other", "license_name": "qwen-research"}
