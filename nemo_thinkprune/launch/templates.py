"""The job scripts of launchers/, filled in."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import nemo_thinkprune
from nemo_thinkprune.recipe.errors import UserError


def launchers_folder() -> Path:
    """Return the folder launchers/ of the checkout."""
    return Path(nemo_thinkprune.__file__).resolve().parent.parent / "launchers"


def render_template(name: str, **values: Any) -> str:
    """Fill in a template of launchers/; a value that it lacks is an error, and `| sh` quotes for a shell.

    Raises:
        UserError: the templates are not beside this package.
    """
    import jinja2

    folder = launchers_folder()
    if not (folder / name).is_file():
        raise UserError(
            f"{folder / name} is not there: `thinkprune launch` needs a checkout of this project (pip install -e)"
        )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell, not HTML
        comment_start_string="{%#",  # the usual one stands in ${#array[@]}
        comment_end_string="#%}",
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    return environment.get_template(name).render(**values)
