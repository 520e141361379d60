"""What the edge holds in memory: the libraries of the network only once a client is made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CODE = """
import sys
import edge
from edge import FeedbackClient, HttpSource, PageClient
print(sorted({"asyncio", "grpc", "urllib3", "tuf"} & set(sys.modules)))
edge.AsyncEdgeSession
PageClient("localhost:1").close()
FeedbackClient("localhost:1").close()
HttpSource("http://localhost:1")
print(sorted({"asyncio", "grpc", "urllib3", "tuf"} & set(sys.modules)))
"""


def test_an_edge_without_a_client_does_not_load_the_networks_libraries() -> None:
    ran = subprocess.run([sys.executable, "-c", CODE], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["[]", "['asyncio', 'grpc', 'urllib3']"]
