"""Train PANet on a Ray cluster: identities and coarse masks teach it the vehicle's outline and, thereby, its parts.

    python jobs/add_masks.py --coarse data/veri776-shards data/veri776-coarse
    python jobs/train_panet.py --config jobs/configs/panet_veri776.yaml data.shards=data/veri776-coarse
    python jobs/add_masks.py --panet runs/panet-veri776/checkpoints/step-00059000 data/veri776-coarse data/veri776-parts

The last command writes what PMANet needs into the shards: refined masks and the boxes of the parts. Evaluation while
training is retrieval with the features of the classification branch.
"""

from __future__ import annotations

import sys

from cluster.command_line import run_training_job
from reid.config import PANetExperiment

if __name__ == "__main__":
    sys.exit(run_training_job(__doc__, kind=PANetExperiment))
