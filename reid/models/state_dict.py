"""Loading a state dict that somebody else wrote: everything must fit, and what does not is named."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

_SHOWN_NAMES = 4


def load_fitting_state(module: nn.Module, state: Mapping[str, Tensor], *, source: object, network: str) -> None:
    """Load `state` into `module` when names and shapes are the module's; otherwise change nothing.

    Args:
        module: Takes the weights.
        state: Name -> tensor. `num_batches_tracked` may be missing: files from before 2018 have none, and it plays no
            part at a fixed momentum.
        source: The file, for the message.
        network: What the module is, for the message.

    Raises:
        ValueError: A name or shape does not fit; the message shows some of them.
    """
    own = module.state_dict()
    missing = sorted(name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    unexpected = sorted(state.keys() - own.keys())
    misshapen = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{source} does not fit {network}: missing {_some(missing)}, unexpected {_some(unexpected)}, "
            f"other shape {_some(misshapen)}; expected the keys of {network}"
        )
    module.load_state_dict(dict(state), strict=False)


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    return f"{len(names)} ({', '.join(names[:_SHOWN_NAMES])}{', ...' if len(names) > _SHOWN_NAMES else ''})"
