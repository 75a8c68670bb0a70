"""`headdyn COMMAND …`, or `python -m headdyn COMMAND …`: run, report, doctor, dashboard, notebook.

Hydra completes commands, options and keys: `eval "$(headdyn -sc install=bash)"`, or zsh; in fish
`headdyn -sc install=fish | source`.
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

# Lines added to Hydra's completion scripts: zsh must emulate bash's completion, and fish must complete file names after
# every command but run.
BEFORE_ZSH = (
    "(( $+functions[compdef] )) || { autoload -Uz compinit; compinit; }\nautoload -Uz bashcompinit; bashcompinit"
)
AFTER_FISH = "complete -c headdyn -n '__fish_seen_subcommand_from report doctor dashboard notebook' -F"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names. Returns its exit status, or 2 if no command has that name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    completion = arguments[1:] if command == "run" else arguments
    if completion and completion[0] in ("-sc", "--shell-completion"):
        return _complete(completion)
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS)) + 2
        print("usage: headdyn COMMAND …\n")
        print("\n".join(f"  {name:<{width}}{purpose}" for name, (_, purpose) in COMMANDS.items()))
        print("\nheaddyn COMMAND --help says more; headdyn --version prints the version")
        return 0
    if command == "--version":
        from headdyn import __version__

        print(f"headdyn {__version__}")
        return 0
    if command not in COMMANDS:
        example = f"; headdyn run {command.lstrip('-')} gives an option" if "=" in command else ""
        print(f"headdyn: {command} is no command; the commands are {', '.join(COMMANDS)}{example}", file=sys.stderr)
        return 2
    current_folder = str(Path.cwd())
    if not {"", current_folder} & set(sys.path):
        sys.path.insert(0, current_folder)  # as `python -m` does, so that settings can name a package in this folder
    return import_module(COMMANDS[command][0]).main(arguments[1:])


def _complete(arguments: Sequence[str]) -> int:
    """Print a shell's completion script, or, when that script calls back, the words that may come next on its line."""
    action, _, shell = arguments[-1].partition("=")
    if action not in ("install", "uninstall", "query") or shell not in ("bash", "zsh", "fish"):
        print("headdyn: -sc needs install=SHELL or uninstall=SHELL; SHELL is bash, zsh or fish", file=sys.stderr)
        return 2
    if action != "query":
        if arguments[-1] == "install=zsh":
            print(BEFORE_ZSH)
        status: int = import_module("headdyn.run").main(arguments)
        if arguments[-1] == "install=fish":
            print(AFTER_FISH)
        return status
    program, _, line = os.environ.get("COMP_LINE", "").partition(" ")
    command, space, rest = line.partition(" ")
    if not space:  # the command itself is still being typed
        print(" ".join(name for name in COMMANDS if name.startswith(command)))
        return 0
    if command != "run":
        return 0
    os.environ["COMP_LINE"] = f"{program} {rest}"
    return import_module("headdyn.run").main(arguments)


if __name__ == "__main__":
    sys.exit(main())
