"""A process that commits events and tells of them, to be killed; light to start."""

from datetime import UTC, datetime

from kinship_daemon.notify import delivery
from kinship_daemon.notify.notifier import Target
from kinship_daemon.notify.settings import KINDS
from kinship_daemon.notify.webhook import webhook
from kinship_storage.lineage import Lineage


class Silent:
    def event(self, *_, **__):
        pass


def now():
    return datetime(2026, 1, 31, 8, 15, tzinfo=UTC)


def work(path, url, pipe):
    """Commits what it is asked to, until it is killed or asked for nothing."""
    delivery._LOOK_SECONDS = delivery._FIRST_WAIT = 0.01
    told = Target("chat", webhook(url=url), frozenset(KINDS))
    with (
        Lineage.open(path, now=now) as lineage,
        delivery.delivering(path, [told], Silent(), now),
    ):
        pipe.send("ready")
        while (message := pipe.recv()) is not None:
            lineage.add_event(*message)
            pipe.send("committed")
