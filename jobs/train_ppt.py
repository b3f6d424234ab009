r"""Train PPT (part perspective transformation) on a Ray cluster.

    python jobs/train_ppt.py --config jobs/configs/ppt_veri776.yaml data.shards=/data/veri776-shards
    ray job submit --working-dir . -- python jobs/train_ppt.py --config jobs/configs/ppt_veri776.yaml \
        data.shards=/data/veri776-shards runs=/data/runs

`model.planes=null` trains the plain baseline: the same code without the local branch.
"""

from __future__ import annotations

import sys

from cluster.command_line import run_training_job

if __name__ == "__main__":
    sys.exit(run_training_job(__doc__))
