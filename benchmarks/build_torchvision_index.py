"""Write compress_cli/checkpoint/torchvision_index.json from the installed torchvision (about a minute).

Usage: python benchmarks/build_torchvision_index.py [FILE]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from compress_cli.checkpoint.builder_index import INDEX_FILE, make_index


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else INDEX_FILE
    index = make_index()
    lines = ",\n".join(json.dumps(item, separators=(",", ":")) for item in index["candidates"])
    codes = ",\n".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in sorted(index["codes"].items()))
    version = json.dumps(index["torchvision"])
    target.write_text(f'{{"torchvision":{version},\n"candidates":[\n{lines}\n],\n"codes":{{\n{codes}\n}}}}\n', "utf-8")
    print(f"{target}: {len(index['candidates'])} candidates, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
