"""What each `mode=` does. Modes are handed an engine, and import neither `actors` nor `tune`."""
