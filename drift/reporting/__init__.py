"""What a run leaves behind: masks, overlay videos, results, attention maps, dashboards."""
