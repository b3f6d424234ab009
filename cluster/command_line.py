"""The command line that all training jobs share: options, overrides, exit codes.

Exit codes: 0 done; 2 the command line, the configuration or the cluster does not fit; 3 the data does not; 4 training
failed and can be resumed; 130 interrupted (Ctrl-C); 143 terminated (SIGTERM). (`ray job submit` passes on 0 and 1
only; the code itself is in the job's details, and the reason is always the last line printed.)
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from ray.exceptions import RayError, RayTaskError

from cluster.dry_run import dry_run
from cluster.error_words import words_of
from cluster.evaluation import EvaluationFailed
from cluster.trainer import Resume, TrainingFailed, evaluate_run, train
from reid.config import AnyExperiment, Experiment, load_experiment
from reid.contracts import DataError
from reid.settings_file import to_yaml

logger = logging.getLogger("reid")


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled like Ctrl-C, told apart by the exit code."""


def run_training_job(
    description: str, argv: Sequence[str] | None = None, kind: type[AnyExperiment] = Experiment
) -> int:
    """Parses the command line, runs what it asks for and returns the exit code."""
    arguments = _parser(description).parse_intermixed_args(argv)
    set_up_logging(arguments.verbose)
    return exit_code(lambda: _run(arguments, kind))


def exit_code(work: Callable[[], None], interrupted: str = "--resume auto continues at the newest checkpoint") -> int:
    """Does the work of a job and says how it ended, in words on standard error and as the exit code.

    Args:
        work: The job.
        interrupted: What to say after an interruption.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        work()
    except DataError as error:
        return _end(3, f"data: {words_of(error)}")
    except (TrainingFailed, EvaluationFailed) as error:
        return _end(4, words_of(error))
    except RayTaskError as error:
        return _end(4, str(error.cause).strip() or type(error.cause).__name__)
    except RayError as error:
        return _end(4, str(error).strip())
    except (ValueError, OSError) as error:
        return _end(2, words_of(error))
    except KeyboardInterrupt as interruption:
        code = 143 if isinstance(interruption, Terminated) else 130
        return _end(code, f"interrupted; {interrupted}")
    return 0


def set_up_logging(verbose: bool = False) -> None:
    """Plain lines with the time on standard error."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    for noisy in ("ray", "matplotlib", "PIL", "urllib3", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _run(arguments: argparse.Namespace, kind: type[AnyExperiment]) -> None:
    experiment = load_experiment(arguments.config, arguments.overrides, kind)
    resume = Resume(arguments.resume or Resume.AUTO)
    _refuse_idle_options(arguments)
    if arguments.print_config:
        sys.stdout.write(to_yaml(experiment))
    elif arguments.dry_run:
        dry_run(experiment, resume, resume_anyway=arguments.resume_anyway)
    elif arguments.eval_only:
        evaluate_run(experiment)
    else:
        train(experiment, resume, resume_anyway=arguments.resume_anyway)


def _refuse_idle_options(arguments: argparse.Namespace) -> None:
    """ValueError for options that would do nothing."""
    modes = {
        "--print-config": arguments.print_config,
        "--dry-run": arguments.dry_run,
        "--eval-only": arguments.eval_only,
    }
    asked = [mode for mode, given in modes.items() if given]
    if len(asked) > 1:
        raise ValueError(f"{asked[0]} and {asked[1]} are two different things to do: give one of them")
    resumes = {"--resume": arguments.resume is not None, "--resume-anyway": arguments.resume_anyway}
    idle = [option for option, given in resumes.items() if given]
    if idle and asked and asked != ["--dry-run"]:
        raise ValueError(f"{idle[0]} does nothing with {asked[0]}, which continues no run: remove it")
    if arguments.resume_anyway and arguments.resume == Resume.NEVER:
        raise ValueError("--resume-anyway does nothing with --resume never, which continues no run: remove one of them")


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="override a setting: dotted path, YAML value (--print-config lists all)",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file with what differs from the defaults (jobs/configs/)"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check configuration, data, weights, checkpoints, storage and resources, try two steps and an evaluation,"
        " estimate time and memory; takes the same --resume as the run",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate the newest checkpoint of the run and stop")
    parser.add_argument(
        "--resume",
        choices=[mode.value for mode in Resume],
        help="auto (default): continue when the run has a checkpoint; never: refuse if it has one; must: refuse if it"
        " has none",
    )
    parser.add_argument(
        "--resume-anyway",
        action="store_true",
        help="continue although settings differ from the checkpoint's; says which",
    )
    parser.add_argument("--verbose", action="store_true", help="log in detail")
    return parser


def _end(code: int, reason: str) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"error: {reason}\n")
    return code


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
