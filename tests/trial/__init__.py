"""The trial: a real Hostler on simulated cards, mixed traffic, injected faults, and every promise watched."""
