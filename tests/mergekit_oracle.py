"""mergekit itself as an oracle: a merge by its own code, in this process, on the CPU."""

from pathlib import Path

import pytest
import yaml


def merge(recipe: str, out: Path) -> Path:
    """
    What mergekit makes of the YAML `recipe`, in the new folder `out`.

    Skips the test where mergekit is not installed.
    """
    pytest.importorskip("mergekit", reason="needs mergekit: pip install 'kinship-daemon[test]'")
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    configuration = MergeConfiguration.model_validate(yaml.safe_load(recipe))
    options = MergeOptions(device="cpu", quiet=True, write_model_card=False)
    try:
        run_merge(configuration, str(out), options=options)
    finally:
        # One cache for the whole process, by path: a later merge must not meet this one's.
        LoaderCache.loaders.clear()
    return out
