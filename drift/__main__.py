"""The command line of the installed package: `drift COMMAND [group=choice] [key=value]`, or `python -m drift`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

__all__ = ["main"]

COMMANDS = {
    "evaluate": "track the objects of a video or of a data set's clips, and score the result",
    "demo": "serve a page for interactive tracking",
    "train": "learn an adapter for each clip of a data set, for evaluate to use",
}


def main() -> int:
    """Runs a command; returns the exit status.

    The command runs as a script, which Lightning starts again for each further process.
    """
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(_usage())
        return 0
    if command not in COMMANDS:
        print(f"error: {command}: no such command; allowed are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    script = Path(__file__).parent / "commands" / f"{command}.py"
    sys.argv = [str(script), *sys.argv[2:]]
    runpy.run_path(str(script), run_name="__main__")
    return 0


def _usage() -> str:
    lines = [f"  drift {name:10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "Video object segmentation with image diffusion models.",
            "",
            *lines,
            "",
            "drift COMMAND --help has the options.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
