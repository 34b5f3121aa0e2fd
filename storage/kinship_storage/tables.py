"""All parts of the lineage as one class, for what reads across them."""

from kinship_storage.best import Best, best
from kinship_storage.candidates import Candidates
from kinship_storage.decisions import Decisions
from kinship_storage.events import Events
from kinship_storage.home import Home
from kinship_storage.jobs import Jobs
from kinship_storage.models import Models
from kinship_storage.results import Results
from kinship_storage.scores import Scores

__all__ = ["Tables"]


class Tables(Home, Models, Candidates, Scores, Decisions, Results, Jobs, Events):
    """What every part knows."""

    def best(self) -> Best | None:
        """
        The best model under the home's selection settings; None before the first score.

        It has answered all documents.
        """
        settings = (self.get("settings") or {}).get("selection")
        means, partials = self.mean_scores("selection", settings), self.partials(settings or "")
        whole = {weights: mean for weights, mean in means.items() if weights not in partials}
        return best(self.models(status="admitted"), whole)
