"""Train the bundled model pair from a file of stories, in one command.

    python models/train.py CORPUS [--out DIR] [--seed N] [--smoke]

CORPUS is UTF-8 text with `<|endoftext|>` between stories (models/README.md says which was used).
OUT receives `storyteller/`, `storyteller-draft/`, `report.json`, `losses.png` and `stages/`. A
stopped run started again with the same OUT goes on after its last finished stage; another seed,
size or corpus needs another OUT.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import tokenizers
import torch

# The package is `models.recipe`, also when this file is started by its path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.recipe.export import save_directory
from models.recipe.log import report
from models.recipe.plot import plot_curves
from models.recipe.run import Run
from models.recipe.sizes import FULL, SMOKE
from models.recipe.stages import run_stages


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train the bundled model pair from a file of stories."
    )
    parser.add_argument("corpus", type=Path, help="stories in UTF-8, <|endoftext|> between them")
    parser.add_argument(
        "--out", type=Path, default=Path("models-out"), help="folder for everything made"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--smoke", action="store_true", help="tiny models, seconds on a CPU, no quality"
    )
    return parser.parse_args()


def main() -> None:
    """Run every stage, then write both directories and the report."""
    arguments = parse_arguments()
    started_s = time.monotonic()
    # One compiled block serves three model shapes, trained and not; the default allows 8 variants.
    torch._dynamo.config.recompile_limit = 64  # noqa: SLF001  # no public name
    recipe = SMOKE if arguments.smoke else FULL
    run = Run.prepare(recipe, arguments.corpus, arguments.out / "stages", arguments.seed)
    target, draft, facts = run_stages(run)
    save_directory(target, run.tokenizer, arguments.out / "storyteller")
    save_directory(draft, run.tokenizer, arguments.out / "storyteller-draft")
    facts |= {
        "elapsed_s": time.monotonic() - started_s,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (arguments.out / "report.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    plot_curves(run.recorded(), arguments.out / "losses.png")
    report("finished", elapsed_s=facts["elapsed_s"], target_held_out=facts["target_held_out"])


if __name__ == "__main__":
    main()
