"""The figures of report.json, typed from where they are made."""
