"""What a run found out: records, tables, plots and files."""
