"""Looks at a trained language model and changes nothing: architecture, text windows, statistics, scores, figures."""
