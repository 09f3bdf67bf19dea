"""Parametric memory: LoRA adapters."""
