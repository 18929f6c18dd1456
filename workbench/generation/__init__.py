"""Hits → prompt → generation: Phi-3.5 through transformers, with the right rotary embedding and planned memory."""
