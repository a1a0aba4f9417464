"""Files of a result: report.json, metrics.csv, report.html."""
