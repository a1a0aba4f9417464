"""Keys of a deployment: ``python deploy/keys.py FOLDER --nodes 3 --host superlink``.

Writes an authority (ca.crt, ca.key), the SuperLink's certificate (server.pem, server.key) for these names and
addresses, and node-0, node-0.pub, ...: what each SuperNode proves itself by, and is registered with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fl_peel.errors import FlPeelError
from simulations.deployment.keys import make_keys


def main() -> int:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description="Certificates of a SuperLink and keys of its SuperNodes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, required=True, help="SuperNodes")
    parser.add_argument("--host", action="append", help="Name or address of the SuperLink; repeatable.")
    given = parser.parse_args()
    try:
        make_keys(given.folder, hosts=given.host or ("127.0.0.1", "localhost"), nodes=given.nodes)
    except FlPeelError as mistake:
        print(f"keys.py: error: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
