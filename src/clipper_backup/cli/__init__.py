"""The command line: the only place that prints or exits. Text and JSON are two renderers of the same events."""
