"""`headdyn COMMAND …`, or `python -m headdyn COMMAND …`: run, report, doctor, dashboard, notebook.

Completion of commands, options and keys is Hydra's: `eval "$(headdyn -sc install=bash)"`, likewise zsh and fish.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

COMMANDS = {
    "run": ("headdyn.run", "do a run, or a sweep with -m: headdyn run -m experiment=matrix mode=smoke"),
    "report": ("headdyn.report.__main__", "rebuild the report of a run or a sweep, or merge several"),
    "doctor": ("headdyn.doctor", "say what this machine can do"),
    "dashboard": ("headdyn.dashboard", "save Weights & Biases dashboards of a sweep"),
    "notebook": ("headdyn.notebook_command", "open the notebook that shows what headdyn does"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that is named first. Returns its exit status; 2 where there is none of that name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("-sc", "--shell-completion"):
        return _complete(arguments)
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS)) + 2
        print("usage: headdyn COMMAND …\n")
        print("\n".join(f"  {name:<{width}}{about}" for name, (_, about) in COMMANDS.items()))
        print("\nheaddyn COMMAND --help says more; headdyn --version says which this is")
        return 0
    if command == "--version":
        from headdyn import __version__

        print(f"headdyn {__version__}")
        return 0
    if command not in COMMANDS:
        print(f"headdyn: {command} is no command; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)  # as `python -m` does, so that a package in this folder can be named
    return import_module(COMMANDS[command][0]).main(arguments[1:])


def _complete(arguments: Sequence[str]) -> int:
    """What a shell asks for through Hydra's completion: the commands, or what may stand behind `run`; or its script."""
    if not arguments[-1].startswith("query="):
        return import_module("headdyn.run").main(arguments)
    program, _, line = os.environ.get("COMP_LINE", "").partition(" ")
    command, behind, rest = line.partition(" ")
    if not behind:
        print(" ".join(name for name in COMMANDS if name.startswith(command)))
        return 0
    if command != "run":
        return 0
    os.environ["COMP_LINE"] = f"{program} {rest}"
    return import_module("headdyn.run").main(arguments)


if __name__ == "__main__":
    sys.exit(main())
