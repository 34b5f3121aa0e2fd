"""
A small Hub on 127.0.0.1 for the tests, speaking real HTTP to the real clients.

Two ports: the Hub itself, and a storage server (the CDN) that large files are redirected to and
uploaded to, so that leaving the Hub's origin is a thing that can be observed; a third one is where
a hostile redirect leads. Every request is logged, and faults can be laid for the requests to come.
By hand, from tests/: `python -m hub_server FOLDER`.
"""

from hub_server.connection import Request
from hub_server.content import blob_id, is_lfs
from hub_server.faults import Chaos, Fault
from hub_server.hub import Hub
from hub_server.people import TOKEN, Token
from hub_server.server import HubServer
from hub_server.store import START, StoredRepo

_Hub = Hub  # its name from when this was one module

__all__ = [
    "START",
    "TOKEN",
    "Chaos",
    "Fault",
    "HubServer",
    "Request",
    "StoredRepo",
    "Token",
    "blob_id",
    "is_lfs",
]
