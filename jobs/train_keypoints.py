"""Train the keypoint detector (stacked hourglass) on a Ray cluster, on the annotated images of a data set.

    python jobs/train_keypoints.py --config jobs/configs/keypoints_veri776.yaml data.shards=/data/veri776-shards
    python jobs/train_keypoints.py --config jobs/configs/keypoints_synthetic.yaml

Evaluation: PCK@0.1, visibility F1, planes and orientation on annotated test images; visibility thresholds are fitted on
held-out training identities and stored with the evaluation.
"""

from __future__ import annotations

import sys

from cluster.command_line import run_training_job
from reid.config import KeypointExperiment

if __name__ == "__main__":
    sys.exit(run_training_job(__doc__, kind=KeypointExperiment))
