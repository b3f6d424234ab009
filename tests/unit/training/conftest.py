from __future__ import annotations

import pytest
import torch


@pytest.fixture
def low_precision_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch say that this processor computes in bf16 and fp16, which it then emulates slowly."""
    for kind in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", lambda: True, raising=False)


@pytest.fixture
def no_low_precision_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch say that this processor computes in float32 only."""
    for kind in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", lambda: False, raising=False)
