"""`mobileo-mlx capabilities`: what the program can do, for other programs."""

from __future__ import annotations

from typing import Any

import typer

from . import options, printing

NAME = "capabilities"


def command(context: typer.Context, as_json: options.Json = False) -> None:  # it is JSON anyway
    """Print all tasks, options and commands as one JSON object."""
    from mobileo_mlx.capabilities import capabilities

    program = context.find_root().command
    commands = {name: _describe(command) for name, command in getattr(program, "commands", {}).items()}
    printing.report({**capabilities(), "commands": commands})


def _describe(command: Any) -> dict[str, Any]:
    """A command of click: what it does, and its arguments and options as they are typed."""
    if inside := getattr(command, "commands", {}):
        text = (command.help or "").partition("\n\n")[0]
        return {"help": text, "commands": {name: _describe(one) for name, one in inside.items()}}
    return {
        "help": (command.help or "").partition("\n\n")[0],
        "arguments": [
            {"name": p.name, "metavar": p.metavar, "help": getattr(p, "help", None), "required": p.required}
            for p in command.params
            if p.param_type_name == "argument"
        ],
        "options": [
            {
                "flags": [*p.opts, *p.secondary_opts],
                "metavar": p.metavar,
                "help": p.help,
                "takes_value": not p.is_flag,
                "repeatable": p.multiple,
                "required": p.required,
            }
            for p in command.params
            if p.param_type_name == "option" and not p.hidden
        ],
    }
