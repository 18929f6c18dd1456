"""The pocket model: a small Phi-MoE that ships with the project, its weights, and everything that made them."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
