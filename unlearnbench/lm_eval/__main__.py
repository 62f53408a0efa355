"""``python -m unlearnbench.lm_eval ...``: lm-eval's own command line, with our models in it.

lm-eval 0.4.13 finds models in its own table only (``lm_eval.models.MODEL_MAPPING``): it reads no
entry points and has no option that imports a module. So this imports ours, which lm-eval's public
``register_model`` adds, and hands over.
"""

from __future__ import annotations

import importlib.util
import sys

from unlearnbench.errors import OptionError, UnlearnbenchError, one_line
from unlearnbench.lm_eval import INSTALL
from unlearnbench.util.process import quiet_imports


def require_lm_eval() -> None:
    """Raise OptionError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise OptionError(f"lm-eval is not installed: {INSTALL}")


def main() -> None:
    """Run lm-eval on ``sys.argv``; an error of ours is one line and exit 2."""
    quiet_imports()
    try:
        require_lm_eval()
        from lm_eval.__main__ import cli_evaluate

        import unlearnbench.lm_eval.model  # noqa: F401 - registers the model

        cli_evaluate()
    except UnlearnbenchError as error:
        print(f"unlearnbench: error: {one_line(error, 2000)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
