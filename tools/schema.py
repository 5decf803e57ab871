"""`make schema`: writes the JSON Schema of the stack files, or with --check says whether it is up to date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fleet.settings.schema import json_schema

TARGET = Path(__file__).resolve().parent.parent / "docs" / "stack.schema.json"


def main(arguments: list[str]) -> int:
    """Exit status 1 if --check finds the file out of date."""
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if arguments == ["--check"]:
        if TARGET.exists() and TARGET.read_text() == text:
            return 0
        print(f"docs/{TARGET.name} is out of date; run: make schema")
        return 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
