"""DAVIS scores: pure functions, a `torchmetrics.Metric`, and a command that scores folders of masks."""
