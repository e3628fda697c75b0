"""Simulated CT with known truth: physics, phantom scans and torsos. Never imported by an analysis step."""
