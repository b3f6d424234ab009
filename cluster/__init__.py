"""Everything that needs Ray: training workers, evaluation workers, parallel packing.

Ray reads part of its environment when it is imported, hence the defaults here; what is set already stays.
"""

import os
import secrets

for _key, _value in {
    # Reports are barriers that wait for the controller's poll; the default of 2 s costs that much an epoch.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Without a limit, a worker that misses a report leaves the others waiting for ever.
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Nothing about a user's cluster is anybody else's business.
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_key, _value)

if not os.environ.get("RAY_ADDRESS"):
    # A Ray of our own on this machine: workers at the usual priority (Ray's default is niceness 15), and every port on
    # 127.0.0.1 only (an undocumented effect, asserted in tests/cluster).
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # Token authentication, with a token of this process's own that is never written to disk.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
