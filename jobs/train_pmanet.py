"""Train PMANet on a Ray cluster: a global head and parts that mentor each other, on shards with masks and part boxes.

    python jobs/add_masks.py --coarse data/veri776-shards data/veri776-coarse
    python jobs/train_panet.py --config jobs/configs/panet_veri776.yaml
    python jobs/add_masks.py --panet runs/panet-veri776/checkpoints/step-00059000 data/veri776-coarse data/veri776-parts
    python jobs/train_pmanet.py --config jobs/configs/pmanet_veri776.yaml

Images without boxes get uniform stripes; the plan of the run counts them. model.planes={} adds PPT's planes to the
global head, the combination of both methods. Retrieval leaves the partial tasks out and needs no boxes;
evaluation.partial_tasks=true takes them in.
"""

from __future__ import annotations

import sys

from cluster.command_line import run_training_job
from reid.config import PMNetExperiment

if __name__ == "__main__":
    sys.exit(run_training_job(__doc__, kind=PMNetExperiment))
