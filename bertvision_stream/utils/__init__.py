"""What every other package may use: errors, files, units, the log, devices."""
