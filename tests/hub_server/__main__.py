"""Serve a folder of org/name/ repos by hand. What is pushed stays in memory."""

import argparse
import time
from pathlib import Path

from hub_server.people import TOKEN, Token
from hub_server.server import HubServer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m hub_server", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds org/name/ folders")
    parser.add_argument("--port", type=int, default=0, help="of the Hub; any free one by default")
    parser.add_argument("--user", default="tester", help="whose token it is")
    asked = parser.parse_args()
    with HubServer(port=asked.port) as server:
        server.tokens[TOKEN] = Token(asked.user)
        for place in sorted(path for path in asked.folder.glob("*/*") if path.is_dir()):
            server.add(place.relative_to(asked.folder).as_posix(), place)
        print(f"HF_ENDPOINT={server.url} HF_TOKEN={TOKEN}", flush=True)
        print(f"{len(server.repos)} repos; pushes are kept in memory; Ctrl-C ends", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
