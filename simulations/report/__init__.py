"""From a result to its files: report.json, metrics.csv, report.html."""
