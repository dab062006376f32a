"""How tasks of each kind are learned and judged. Import the modules; this one is kept light."""
