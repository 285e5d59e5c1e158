"""Scores of masks as DAVIS defines them: functions, a `torchmetrics.Metric`, and a scorer of folders."""
