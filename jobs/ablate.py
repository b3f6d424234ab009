"""Rerun the papers' ablation tables on your data: each variant with several seeds, figures beside the paper's.

    python jobs/ablate.py methods --config jobs/configs/pmanet_synthetic.yaml
    python jobs/ablate.py iii v vii --config jobs/configs/pmanet_veri776.yaml --seeds 0 1 2
    python jobs/ablate.py 5 6 --config jobs/configs/ppt_veri776.yaml
    python jobs/ablate.py iv vi --config jobs/configs/pmanet_synthetic.yaml --plan

Variants are the configuration with a few settings changed, so all have its data, budget and schedule; PPT and the plain
baseline can be made from one of PMANet. Tables share runs. What is done is not repeated, what was interrupted goes on:
give the same command again. Tables go to RUNS/NAME-ablation as Markdown and JSON, anew after every run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.ablation import plan_of_tables, run_tables
from cluster.command_line import exit_code, set_up_logging
from reid.build.ablation import TABLES, AblationBase, tables_of
from reid.build.ablation_report import table_text
from reid.config import Experiment, PMNetExperiment, load_experiment
from reid.settings_file import read_file


def main() -> int:
    """Runs the tables that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    described = "; ".join(f"{name}: {table.title}" for name, table in TABLES.items())
    parser.add_argument("tables", nargs="+", metavar="TABLE", help=f"and key=value overrides. {described}")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="what all variants have in common")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="a run of each variant for"
    )
    parser.add_argument(
        "--occluded-parts", metavar="SHARDS",
        help="table viii: the set of jobs/make_occluded.py with parts that PANet found in it, for PMANet's own row",
    )  # fmt: skip
    parser.add_argument("--plan", action="store_true", help="list the runs and whether they are done, and stop")
    arguments = parser.parse_intermixed_args()
    set_up_logging()
    return exit_code(lambda: _ablate(arguments))


def _ablate(arguments: argparse.Namespace) -> None:
    overrides = [text for text in arguments.tables if "=" in text]
    names = [text for text in arguments.tables if "=" not in text]
    if not names:
        raise ValueError(f"expected a table out of {', '.join(TABLES)}, got overrides only")
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise ValueError(f"--seeds: expected each seed once, got {arguments.seeds}")
    base: AblationBase
    match read_file(arguments.config).get("task", "ppt"):
        case "pmanet":
            base = load_experiment(arguments.config, overrides, PMNetExperiment)
        case "ppt":
            base = load_experiment(arguments.config, overrides, Experiment)
        case task:
            raise ValueError(f"--config {arguments.config}: tables are made of task pmanet or ppt, not {task}")
    tables = tables_of(base, names)
    if arguments.plan:
        print("\n".join(plan_of_tables(base, tables, arguments.seeds, arguments.occluded_parts)))
        return
    results = run_tables(base, tables, arguments.seeds, arguments.occluded_parts)
    print("\n\n".join(table_text(filled) for filled in results.values()))


if __name__ == "__main__":
    sys.exit(main())
