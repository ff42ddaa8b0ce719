"""Walking a calibration text through edited blocks."""
