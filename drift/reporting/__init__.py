"""Outputs of a run besides masks: results, figures, attention maps, the HTML report and dashboards."""
