"""What a batch plan must be, spelled out in loops."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

Plan = Sequence[Sequence[Sequence[int]]]


def violations(plan: Plan, identity_of_row: Mapping[int, int], num_identities: int, num_images: int) -> list[str]:
    """Everything wrong with the plan of an epoch over the rows of `identity_of_row`; empty when it is right."""
    rows_of_identity: dict[int, list[int]] = defaultdict(list)
    for row, identity in identity_of_row.items():
        rows_of_identity[identity].append(row)
    wrong = []
    shown: Counter[int] = Counter()
    lanes_of_identity: dict[int, set[int]] = defaultdict(set)
    for step, batch in enumerate(plan):
        if len(batch) != num_identities:
            wrong.append(f"step {step} has {len(batch)} identities")
        identities = []
        for lane, visit in enumerate(batch):
            owners = {identity_of_row[row] for row in visit}
            if len(owners) != 1:
                wrong.append(f"step {step} lane {lane} mixes identities")
                continue
            identity = owners.pop()
            identities.append(identity)
            lanes_of_identity[identity].add(lane)
            if len(visit) != num_images:
                wrong.append(f"step {step} lane {lane} has {len(visit)} images")
            times = [visit.count(row) for row in rows_of_identity[identity]]
            if max(times) - min(times) > 1:
                wrong.append(f"step {step} lane {lane} repeats one image while another one is left out")
            for row in visit:
                shown[row] += 1
        if len(set(identities)) != len(identities):
            wrong.append(f"step {step} has an identity twice")
    wrong += [f"row {row} is never shown" for row in identity_of_row if shown[row] == 0]
    wrong += [f"identity {i} is in lanes {lanes}" for i, lanes in lanes_of_identity.items() if len(lanes) > 1]
    return wrong


def least_steps(images_of_identity: Sequence[int], num_identities: int, num_images: int) -> int:
    """No epoch that shows every image is shorter: the visits shared out evenly, or those of the largest identity."""
    visits = [-(-count // num_images) for count in images_of_identity]
    return max(-(-sum(visits) // num_identities), max(visits))


def times_shown(plan: Plan) -> Counter[int]:
    """How often each row is shown."""
    return Counter(row for batch in plan for visit in batch for row in visit)
