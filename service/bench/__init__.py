"""A load test of one model, beside what each part of the server reaches alone on the same machine."""
