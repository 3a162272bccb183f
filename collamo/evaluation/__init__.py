"""Answers, scores against baselines with intervals, and the report that says what they mean."""
