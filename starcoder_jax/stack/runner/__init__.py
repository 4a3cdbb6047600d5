"""Runs the steps of a pipeline: on this machine, or with Apache Beam."""
